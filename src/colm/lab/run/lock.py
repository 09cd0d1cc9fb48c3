"""One run at a time in an output folder."""

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
"""Exists during a run, and after a kill; not part of the run. The Trainer does not push names with ``_`` to the Hub."""

_held: set[int] = set()


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Make a folder and lock it against other runs until the block or the process ends.

    The system holds the lock (flock), not the file: it is released when the process exits, even if it is killed. On a
    file system without locks, colm only logs a warning.

    Raises:
        ConfigError: another process trains there, or the folder cannot be created.
    """
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir={folder} cannot be created: {error}. Choose another one.") from error
    path = folder / LOCK_NAME
    held = None
    try:
        held = _lock(path)
    except OSError as error:
        logger.warning(
            "%s cannot be locked (%s). Nothing stops a second run from writing there; make sure that there is none.",
            folder,
            error.strerror or error,
        )
    try:
        yield
    finally:
        if held is not None:
            path.unlink(missing_ok=True)  # before the lock is released: the next holder sees that its file is gone
            _held.discard(held)
            os.close(held)
            if new:  # nothing was started
                with suppress(OSError):
                    folder.rmdir()


def _lock(path: Path) -> int:
    """Return the locked file's descriptor. Raises OSError if the system has no locks."""
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
            os.close(held)  # its holder exited in the meantime
        except (BlockingIOError, PermissionError) as error:  # some file systems raise the latter
            who = os.read(held, 200).decode(errors="replace").strip()
            os.close(held)
            raise ConfigError(
                f"Another process is training in {path.parent}{f' ({who})' if who else ''}. Wait until it exits, stop "
                "it (SIGTERM lets it save first), or choose another output_dir."
            ) from error
        except OSError:
            os.close(held)
            raise
    said = os.read(held, 200).decode(errors="replace")
    if said and not re.fullmatch(r"process \d+ on .*\n", said):
        os.close(held)
        raise ConfigError(f"{path} is not colm's lock file. Move it, or choose another output_dir.")
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
    """Close the locks in a forked child: a data loader worker that outlives a killed run must not hold them."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
