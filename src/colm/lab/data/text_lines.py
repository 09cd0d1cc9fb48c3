"""Lines of a text file, and their places for errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from colm.errors import DataError

Row = dict[str, Any]


class Place(NamedTuple):
    """The position where a row begins."""

    file: str
    line: int  # the first is 1

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


def split_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file, with any of the three line endings."""
    for raw in file:
        yield from raw.splitlines(keepends=True)


def decode(raw: bytes, place: Place) -> str:
    """Return the text of bytes that begin at a place. Raises DataError if they are not UTF-8."""
    if place.line == 1:
        raw = raw.removeprefix(b"\xef\xbb\xbf")  # a byte-order mark
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = place.line + raw.count(b"\n", 0, error.start)
        before = error.start - (raw.rfind(b"\n", 0, error.start) + 1)
        raise DataError(
            f"{place.file}, line {line}, is not UTF-8: byte {before + 1} of the line is 0x{raw[error.start]:02x}. "
            "Save the file as UTF-8."
        ) from error
