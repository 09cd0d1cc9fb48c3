"""The manifest: the list of the files that colm wrote to a folder, stored in that folder."""

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
    """The files that colm wrote.

    Attributes:
        run: a run started here, so all of its files are listed; otherwise an older version may have written more.
        files: relative path -> accepted states, each a size in bytes and a digest (see `recognize.identify`): two while
            the file is replaced. None for a growing log, which is recognized by its content.
        checkpoints: names of the folders that the run writes; each has its own list of files.
        moved: files that were moved next to this list while a run is replaced.
    """

    run: bool = False
    files: dict[str, list[list[Any]] | None] = field(default_factory=dict)
    checkpoints: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write the manifest to a folder atomically."""
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=1)
        replace_file(folder / MANIFEST_NAME, text + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest; empty if there is none.

    Raises:
        ConfigError: the file is not a manifest.
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
            f"{path} is not a list of files that this version of colm wrote ({error}). Move it, or choose another "
            "folder."
        ) from error
    return manifest


@contextmanager
def changed_manifest(folder: Path) -> Iterator[Manifest]:
    """Yield a folder's manifest for changes, and write it; other processes wait if the system has locks."""
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
