"""Rows of JSON and JSON Lines files, as written in the file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any

from colm.errors import DataError
from colm.lab.data.schemas import is_row
from colm.lab.data.text_lines import Place, Row, decode, split_lines

_SPACE = re.compile(r"[ \t\r\n]*")


class _Number(float):
    """A number with a fraction or an exponent that keeps its written form."""

    written: str

    def __new__(cls, written: str) -> _Number:
        number = super().__new__(cls, written)
        number.written = written
        return number


class _Doubled(ValueError):
    """A JSON object has a duplicate key."""


def jsonl_rows(name: str, file: IO[bytes]) -> Iterator[tuple[Place, Row]]:
    """Yield the row of each line that is not blank. Raises DataError."""
    for place, text in _jsonl_texts(name, file):
        yield place, _parse_row(text, place)


def jsonl_lines(name: str, file: IO[bytes]) -> Iterator[tuple[str, Row]]:
    """Yield each line that is not blank as written, with its row. Raises DataError."""
    for place, text in _jsonl_texts(name, file):
        yield text, _parse_row(text, place)


def _jsonl_texts(name: str, file: IO[bytes]) -> Iterator[tuple[Place, str]]:
    for number, raw in enumerate(split_lines(file), start=1):
        place = Place(name, number)
        if raw.strip():
            yield place, decode(raw, place).strip(" \t\r\n")


def json_rows(name: str, file: IO[bytes]) -> Iterator[tuple[Place, Row]]:
    """Yield the rows of a list, also under a key of one object, or consecutive rows, with any line breaks.

    Raises:
        DataError: a row is damaged; the message names the line and the problem.
    """
    text = decode(file.read(), Place(name, 1))
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
