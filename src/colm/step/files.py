"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROBE_BYTES = 2**16


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a new file next to `path`, which takes the place of `path` at the end of the block.

    If the block raises, the new file is deleted, and `path` stays as it is.
    """
    partial = _new_file(path)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def replace_file(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    replace_lines(path, [text])


def replace_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a file as `replace_file` does, a line at a time; each line has its own end."""
    with replacing(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(lines)


def probe(path: Path) -> None:
    """Check that `path` could be written: write a file next to it and delete that file. Raises OSError."""
    partial = _new_file(path)
    try:
        partial.write_bytes(b" " * PROBE_BYTES)
    finally:
        partial.unlink()


def _new_file(path: Path) -> Path:
    """Make an empty file next to `path`, under a name that no other file has."""
    number = os.getpid()
    while True:
        partial = path.with_name(f"{path.name}.{number}")
        try:
            partial.open("x").close()
        except FileExistsError:  # left by a process that was killed, or somebody else's
            number += 1
            continue
        return partial
