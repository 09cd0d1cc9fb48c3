"""The list of the files that colm wrote to a folder, which stands in that folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from colm.errors import ConfigError
from colm.step.files import replace_file
from colm.step.record import MANIFEST_NAME

VERSION = 1


@dataclass
class Manifest:
    """What colm wrote.

    Attributes:
        run: a training began here, so every file of it is listed; else an older version may have written more.
        files: relative path -> what it may be, each a size in bytes and a digest (see `recognize.identify`): two while
            it is replaced. None for a log that grows, which is told by what stands in it.
        checkpoints: names of the folders that the training writes; each lists its files itself.
        moved: files that were moved beside this list, as a run is replaced.
    """

    run: bool = False
    files: dict[str, list[list[Any]] | None] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write it to a folder, whole or not at all."""
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1)
        replace_file(folder / MANIFEST_NAME, text + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's list, empty where there is none.

    Raises:
        ConfigError: the file is not such a list.
    """
    path = folder / MANIFEST_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.pop("version") != VERSION:
            raise ValueError("another version")
        manifest = Manifest(**values)
        names = [*manifest.files, *manifest.checkpoints, *manifest.moved]
        if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in names):
            raise ValueError("a path that leaves the folder")
    except FileNotFoundError:
        return Manifest()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not a list of files that this version of colm wrote ({error}). Move it away, or choose another "
            "folder."
        ) from error
    return manifest


@contextmanager
def changed_manifest(folder: Path) -> Iterator[Manifest]:
    """Give a folder's list to be changed, and write it; other processes wait, where the system has locks."""
    descriptor = None
    with suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        manifest = read_manifest(folder)
        yield manifest
        manifest.write(folder)
    finally:
        if descriptor is not None:
            os.close(descriptor)
