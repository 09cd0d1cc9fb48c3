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
import json
import lzma
import math
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import pyarrow as pa

from colm.errors import DataError
from colm.lab.data.schemas import is_row

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

_SPACE = re.compile(r"[ \t\r\n]*")

Row = dict[str, Any]
T = TypeVar("T")


class Place(NamedTuple):
    """The position where a row begins."""

    file: str
    line: int  # the first is 1

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


class _Number(float):
    """A number with a fraction or an exponent that keeps its written form."""

    written: str

    def __new__(cls, written: str) -> _Number:
        number = super().__new__(cls, written)
        number.written = written
        return number


class _Doubled(ValueError):
    """A JSON object has a duplicate key."""


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
    read = _csv_rows if kind in CSV_ENDINGS else _jsonl_rows if kind != ".json" else _json_rows
    return _read(name, partial(read, separator=separator), open_file or _open_local)


def read_json_lines(name: str) -> Iterator[tuple[str, Row]]:
    """Yield the lines of a local JSON Lines file as written, each with its row. Raises as `read_file_rows`."""
    return _read(name, _jsonl_lines, _open_local)


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


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file, with any of the three line endings."""
    for raw in file:
        yield from raw.splitlines(keepends=True)


def _decode(raw: bytes, place: Place) -> str:
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


# ---- JSON ----


def _jsonl_rows(name: str, file: IO[bytes], separator: str) -> Iterator[tuple[Place, Row]]:
    for place, text in _jsonl_texts(name, file):
        yield place, _parse_row(text, place)


def _jsonl_lines(name: str, file: IO[bytes]) -> Iterator[tuple[str, Row]]:
    for place, text in _jsonl_texts(name, file):
        yield text, _parse_row(text, place)


def _jsonl_texts(name: str, file: IO[bytes]) -> Iterator[tuple[Place, str]]:
    for number, raw in enumerate(_lines(file), start=1):
        place = Place(name, number)
        if raw.strip():
            yield place, _decode(raw, place).strip(" \t\r\n")


def _json_rows(name: str, file: IO[bytes], separator: str) -> Iterator[tuple[Place, Row]]:
    """Read a list of rows, also under a key of one object, or consecutive rows, with any line breaks."""
    text = _decode(file.read(), Place(name, 1))
    at, line, counted = _skip(text, 0), 1, 0
    inner = _find_inner_list(text, at)
    at = at if inner is None else inner
    listed = text[at : at + 1] == "["
    if listed:
        at = _skip(text, at + 1)
    while at < len(text):
        line, counted = line + text.count("\n", counted, at), at
        place = Place(name, line)
        if listed and text[at] == "]":
            if inner is None and _skip(text, at + 1) < len(text):
                raise DataError(f"{place}: unexpected content after the list of rows.")
            return
        row, end = _parse(text, at, place)
        yield place, row
        at = _skip(text, end)
        if listed:
            if text[at : at + 1] not in (",", "]"):
                raise DataError(f"{Place(name, line + text.count(chr(10), counted, at))}: {_cut(text[at:])}")
            at = _skip(text, at + 1) if text[at] == "," else at
    if listed:
        raise DataError(f"{Place(name, text.count(chr(10)) + 1)}: truncated: the file ends inside its list of rows.")


def _find_inner_list(text: str, at: int) -> int | None:
    """Return where the list of rows begins in a file that is one object with that list, ``{"data": [...]}``."""
    if text[at : at + 1] != "{":
        return None
    try:
        whole, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):  # reported when the file is read as rows
        return None
    lists = [key for key, value in whole.items() if _is_rows(value)]
    if _skip(text, end) < len(text) or len(lists) != 1 or is_row(whole):
        return None
    at = _skip(text, at + 1)
    while True:
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # behind the colon
        if key == lists[0]:
            return at
        _, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # behind the comma


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _cut(rest: str) -> str:
    return "a comma or the end of the list of rows is missing" if rest else "the file ends inside its list of rows"


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _parse_row(text: str, place: Place) -> Row:
    row, end = _parse(text, 0, place)
    if _skip(text, end) < len(text):
        raise DataError(
            f"{place}, contains more than one JSON object (from character {end + 1}: {text[end : end + 40]!r}); "
            "write each row on a line of its own."
        )
    return row


def _parse(text: str, at: int, place: Place) -> tuple[Row, int]:
    try:
        row, end = _DECODER.raw_decode(text, at)
    except _Doubled as error:
        raise DataError(f"{place}, has the key {error.args[0]!r} twice in one object; keep one of the two.") from error
    except json.JSONDecodeError as error:
        where = f"line {place.line + text.count(chr(10), at, error.pos)}"
        raise DataError(
            f"{place.file}, {where}, is not valid JSON: {error.msg} at column {error.colno}. "
            f"It reads {text[max(at, error.pos - 20) : error.pos + 20].strip()!r}."
        ) from error
    except (ValueError, RecursionError) as error:  # numbers with thousands of digits, thousands of brackets
        raise DataError(f"{place}, cannot be read as JSON: {error}.") from error
    if not isinstance(row, dict):
        kind = "a list" if isinstance(row, list) else "a text" if isinstance(row, str) else "a number or a constant"
        raise DataError(
            f"{place}, contains {kind}, {text[at:end][:40]!r}; each row must be an object such as "
            '{"prompt": ..., "completion": ...}.'
        )
    if text.find("\\u", at, end) >= 0:
        _require_unicode(row, place)
    return {key: _plain(value) for key, value in row.items()}, end


def _require_unicode(row: Row, place: Place) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}, has half a surrogate pair ({error.object[error.start]!a}), which is not a character; save the "
            "text as UTF-8."
        ) from error


def _plain(value: Any) -> Any:
    """Return a cell's value; inside lists and mappings, numbers stay numbers."""
    if isinstance(value, _Number):
        return value.written
    return None if isinstance(value, float) and math.isnan(value) else value


def _no_key_twice(pairs: Sequence[tuple[str, Any]]) -> Row:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Doubled(next(key for key in keys if keys.count(key) > 1))
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_no_key_twice, parse_float=_Number)

# ---- CSV ----


def _csv_rows(name: str, file: IO[bytes], separator: str) -> Iterator[tuple[Place, Row]]:
    csv.field_size_limit(sys.maxsize)
    lines = (_decode(raw, Place(name, number)) for number, raw in enumerate(_lines(file), start=1))
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
