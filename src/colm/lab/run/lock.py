"""One training at a time in an output folder."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from colm.errors import ConfigError

logger = logging.getLogger(__name__)

LOCK_NAME = "_training.lock"
"""There while a training runs, and after one was killed; no part of a run. The Trainer pushes no ``_`` to the hub."""

_held: set[int] = set()


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a folder, which is made where there is none, until the block or the process ends.

    The lock is the system's (flock), not the file: it goes with the process, also with one that is killed. Where the
    file system has no locks nothing is held, and a warning says so.

    Raises:
        ConfigError: another process trains there, or the folder can not be made.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir={folder} can not be made: {error}. Choose another one.") from error
    path = folder / LOCK_NAME
    held = None
    try:
        held = _lock(path)
    except OSError as error:
        logger.warning(
            "%s can not be locked (%s). Nothing stops a second training from writing there; see that there is none.",
            folder,
            error.strerror or error,
        )
    try:
        yield
    finally:
        if held is not None:
            path.unlink(missing_ok=True)  # before the lock goes: whoever gets it then sees that its file is gone
            _held.discard(held)
            os.close(held)
            if new:  # nothing was begun
                with suppress(OSError):
                    folder.rmdir()


def _lock(path: Path) -> int:
    """Return the locked file's descriptor. Raises OSError where there are no locks."""
    try:
        import fcntl
    except ImportError as error:  # on Windows
        raise OSError("the system has no flock") from error
    while True:
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(held, path):
                break
            os.close(held)  # its holder has ended in between
        except (BlockingIOError, PermissionError) as error:  # some file systems say the latter
            who = os.read(held, 200).decode(errors="replace").strip()
            os.close(held)
            raise ConfigError(
                f"Another process is training in {path.parent}{f' ({who})' if who else ''}. Wait for its end, or stop "
                "it (SIGTERM lets it save first), or choose another output_dir."
            ) from error
        except OSError:
            os.close(held)
            raise
    said = os.read(held, 200).decode(errors="replace")
    if said and not re.fullmatch(r"process \d+ on .*\n", said):
        os.close(held)
        raise ConfigError(f"{path} is not the lock that colm keeps there. Move it away, or choose another output_dir.")
    _held.add(held)
    with suppress(OSError):  # a full disk: the lock is held all the same
        os.truncate(held, 0)
        os.lseek(held, 0, os.SEEK_SET)
        os.write(held, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return held


def _is_at(held: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held), path.stat())
    except FileNotFoundError:
        return False


def _leave_to_parent() -> None:
    """Close the locks in a forked child: a data loader's worker that outlives a killed training must not hold them."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
