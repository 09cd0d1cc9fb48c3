"""A folder as archives of limited size, and back: files are compressed if that saves, and split if they do not fit."""

from __future__ import annotations

import gzip
import io
import itertools
import re
import shutil
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

LARGEST = 55 * 2**20
"""Maximum bytes of an archive."""

PACKED = ".packed"
"""Ending of a compressed file."""

_PIECE = re.compile(r"(.+)\.piece-(\d+)-of-(\d+)")
_BLOCK = tarfile.BLOCKSIZE


def pack(content: Path, out: Path, largest: int = LARGEST) -> list[Path]:
    """Write the files of a folder into ``1.tar``, ``2.tar`` and so on, small files first.

    Args:
        content: the folder.
        out: where the archives go; older ones are removed.
        largest: maximum bytes of an archive.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.tar"):
        old.unlink()
    archives: list[Path] = []
    room = 0  # bytes left in the last archive
    for path in sorted((path for path in content.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size):
        name, data = _shrink(str(path.relative_to(content)), path.read_bytes())
        cuts = _cut(len(data), room, largest - tarfile.RECORDSIZE)
        for number, (start, end) in enumerate(cuts):
            if _taken(end - start) > room:
                archives.append(out / f"{len(archives) + 1}.tar")
                room = largest - tarfile.RECORDSIZE  # tar pads an archive to this size
            head = tarfile.TarInfo(name if len(cuts) == 1 else f"{name}.piece-{number}-of-{len(cuts)}")
            head.size = end - start
            with tarfile.open(archives[-1], "a") as archive:
                archive.addfile(head, io.BytesIO(data[start:end]))
            room -= _taken(end - start)
    return archives


def unpack(archives: Path, out: Path) -> list[str]:
    """Unpack the available archives, and join files with all pieces present.

    Args:
        archives: the folder that `pack` wrote to, or part of its contents.
        out: where the files go; it may contain files from an earlier call.

    Returns:
        Files with missing pieces.
    """
    out.mkdir(parents=True, exist_ok=True)
    safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in Python 3.11.3
    arrived = set()
    for path in sorted(archives.glob("*.tar")):
        with tarfile.open(path) as archive:
            archive.extractall(out, **safely)
            arrived.update(out / name for name in archive.getnames())
    missing = set()
    for path in sorted(path for path in out.rglob("*.piece-*")):
        found = _PIECE.fullmatch(path.name)
        if found is None or not path.exists():
            continue
        target = path.with_name(found[1])
        pieces = [path.with_name(f"{found[1]}.piece-{number}-of-{found[3]}") for number in range(int(found[3]))]
        if all(piece.exists() for piece in pieces):
            _join(pieces, target)
            arrived.add(target)
        elif not target.with_name(target.name.removesuffix(PACKED)).exists():
            missing.add(str(target.relative_to(out)).removesuffix(PACKED))
    for path in sorted(path for path in arrived if path.name.endswith(PACKED)):
        with gzip.open(path) as file:
            _write(path.with_name(path.name.removesuffix(PACKED)), [file])
        path.unlink()
    return sorted(missing)


def _shrink(name: str, data: bytes) -> tuple[str, bytes]:
    """Return a file's name and content in an archive, compressed if that saves a tenth."""
    smaller = gzip.compress(data, mtime=0)
    return (name + PACKED, smaller) if len(smaller) < 0.9 * len(data) or name.endswith(PACKED) else (name, data)


def _cut(size: int, room: int, full: int) -> list[tuple[int, int]]:
    """Return where to cut a file, so that the first piece fills the remaining room and the others an archive each."""
    cuts = [0]
    for space in (room, *[full] * (size // (full - 2 * _BLOCK) + 1)):
        end = min(size, cuts[-1] + (space // _BLOCK - 1) * _BLOCK)
        if end > cuts[-1]:
            cuts.append(end)
    return list(itertools.pairwise(cuts)) or [(0, 0)]


def _taken(size: int) -> int:
    """Return the bytes that a piece takes in an archive, including its header."""
    return (1 + -(-size // _BLOCK)) * _BLOCK


def _join(pieces: list[Path], target: Path) -> None:
    with ExitStack() as stack:
        _write(target, [stack.enter_context(piece.open("rb")) for piece in pieces])
    for piece in pieces:
        piece.unlink()


def _write(target: Path, parts: Sequence[IO[bytes]]) -> None:
    """Write a file whole or not at all."""
    unfinished = target.with_name(f"{target.name}.part")
    with unfinished.open("wb") as file:
        for part in parts:
            shutil.copyfileobj(part, file, 2**24)
    unfinished.rename(target)
