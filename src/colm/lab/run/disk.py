"""Why a file cannot be written, in one line."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from colm.errors import ColmError, ConfigError

_NUMBERS = {
    getattr(errno, name)
    for name in (
        "ENOSPC",
        "EDQUOT",
        "EROFS",
        "EACCES",
        "EPERM",
        "EISDIR",
        "EEXIST",
        "ENOTDIR",
        "EFBIG",
        "EIO",
        "ENAMETOOLONG",
    )
    if hasattr(errno, name)
}
_SAID = re.compile(r"No space left on device|Disk quota exceeded|Read-only file system|Permission denied")


def why_not_written(error: BaseException | None) -> str | None:
    """Return why a file could not be written, or None if the error has another cause.

    PyTorch and safetensors raise their own errors for a full disk, without an errno.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NUMBERS:
            where = f": {error.filename}" if error.filename else ""
            return f"{error.strerror}{where}"
        if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding():
            return (
                f"the name {error.object!r} cannot be encoded in {error.encoding}, this system's encoding for names; "
                "set PYTHONUTF8=1"
            )
        if type(error).__name__ in ("RuntimeError", "SafetensorError", "ArrowInvalid", "OSError"):
            said = _SAID.search(str(error))
            if said is not None:
                return said.group()
            if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
                return "not all bytes could be written, as when the disk is full"
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def saying(place: Path | str, advice: str) -> Iterator[None]:
    """Within the block, turn errors in writing to a folder into one line with the reason and advice.

    Args:
        place: the folder; errors about files elsewhere pass through.
        advice: a sentence.

    Raises:
        ConfigError: a file could not be written.
    """
    try:
        yield
    except ColmError:
        raise
    except Exception as error:
        why = why_not_written(error)
        if why is None or not _is_within(error, Path(place)):
            raise
        raise ConfigError(f"{place} cannot be written ({why}). {advice}") from error


def _is_within(error: BaseException, folder: Path) -> bool:
    name = error.filename if isinstance(error, OSError) else None
    return not isinstance(name, str | bytes) or Path(os.fsdecode(name)).absolute().is_relative_to(folder.absolute())
