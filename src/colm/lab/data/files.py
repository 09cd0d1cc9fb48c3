"""Rows of JSON and CSV files, as written in the file.

`datasets` reads these files through pyarrow and pandas, which guess types: texts that look like dates become dates,
``007`` becomes 7, ``NA`` becomes a missing value, and objects with different keys are merged. Here texts stay texts,
and every error names the file and the line.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, TypeVar

import pyarrow as pa

from colm.errors import DataError
from colm.lab.data.json_rows import json_rows, jsonl_lines, jsonl_rows
from colm.lab.data.text_lines import Place, Row, decode, split_lines

JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
CSV_ENDINGS = (".csv", ".tsv")
COMPRESSIONS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda file: io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")),
}
"""Compression endings, and the function that opens each."""

DAMAGED = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, pa.ArrowException, OSError)
"""Errors that the decompressors raise for a damaged file."""

T = TypeVar("T")


def split_ending(name: str) -> tuple[str, str, str]:
    """Return a file's name without endings, its ending in lower case, and its compression ending ('' if uncompressed).

    >>> split_ending("data/maths.v2.jsonl.GZ")
    ('maths.v2', '.jsonl', '.gz')
    """
    path = Path(name)
    compression = path.suffix.lower()
    if compression in COMPRESSIONS:
        path = path.with_suffix("")
    else:
        compression = ""
    return path.stem, path.suffix.lower(), compression


def read_file_rows(
    name: str, *, ending: str | None = None, separator: str = "", open_file: Callable[[str], IO[bytes]] | None = None
) -> Iterator[tuple[Place, Row]]:
    """Yield the rows of a JSON, JSON Lines or CSV file with their places.

    Values are JSON values: text, numbers, booleans, None, lists and mappings. If a whole cell is a number with a
    fraction or an exponent, its value is the text from the file. NaN is None. Cells of CSV files are text.

    Args:
        name: path or address; a compressed file must have its compression's ending.
        ending: one of `JSON_ENDINGS` or `CSV_ENDINGS`; by default the name's.
        separator: cell separator of a CSV file; by default a tab for ``.tsv``, else that of the header: a comma, or a
            semicolon or tab if it has no comma.
        open_file: opens the file to read bytes; by default the local one.

    Raises:
        DataError: the file cannot be read, or a row is damaged; the message names the line and the problem.
    """
    kind = ending or split_ending(name)[1]
    csv_rows = partial(_csv_rows, separator=separator)
    read = csv_rows if kind in CSV_ENDINGS else jsonl_rows if kind != ".json" else json_rows
    return _read(name, read, open_file or _open_local)


def read_json_lines(name: str) -> Iterator[tuple[str, Row]]:
    """Yield the lines of a local JSON Lines file as written, each with its row. Raises as `read_file_rows`."""
    return _read(name, jsonl_lines, _open_local)


def _read(
    name: str, read: Callable[[str, IO[bytes]], Iterator[T]], open_file: Callable[[str], IO[bytes]]
) -> Iterator[T]:
    compression = split_ending(name)[2]
    try:
        with open_file(name) as raw:
            yield from read(name, COMPRESSIONS[compression](raw) if compression else raw)
    except DAMAGED as error:
        how = f"could not be decompressed as {compression}" if compression else "could not be read"
        raise DataError(f"The file {name!r} {how} ({type(error).__name__}: {error}).") from error


def _open_local(name: str) -> IO[bytes]:
    return open(name, "rb")


def _csv_rows(name: str, file: IO[bytes], separator: str) -> Iterator[tuple[Place, Row]]:
    csv.field_size_limit(sys.maxsize)
    lines = (decode(raw, Place(name, number)) for number, raw in enumerate(split_lines(file), start=1))
    opening = []  # up to the header
    for line in lines:
        opening.append(line)
        if line.strip():
            break
    if not separator:
        separator = "\t" if split_ending(name)[1] == ".tsv" else _separator("".join(opening))
    reader = csv.reader(chain(opening, lines), delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        place = Place(name, reader.line_num + 1)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{place}, is not valid CSV: {error}. Quote a cell with quotes, commas or line breaks, and "
                "double the quotes inside it."
            ) from error
        if not cells:
            continue
        if not header:
            header = cells
            doubled = [column for column in header if header.count(column) > 1]
            if doubled:
                raise DataError(f"{place}, names the column {doubled[0]!r} twice; rename one of them.")
        elif len(cells) != len(header):
            raise DataError(
                f"{place}, has {len(cells)} cells, but the header has {len(header)} (separator {separator!r}). Quote a "
                "cell with separators or line breaks."
            )
        else:
            yield place, dict(zip(header, cells, strict=True))


def _separator(header: str) -> str:
    """Return the separator of a header: a comma, unless it has none."""
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")
