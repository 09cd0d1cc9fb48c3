"""The rows of a mixture's parts as one sequence of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from colm.errors import DataError
from colm.lab.data.formats import text_of_row
from colm.lab.data.schemas import choose_format

BLOCK = 10_000
"""Rows read at a time."""


class Row(NamedTuple):
    """One row and the format of its part."""

    format: str  # a key of formats.COLUMNS
    values: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The row's whole text."""
        return text_of_row(self.format, self.values)


class Rows:
    """Rows of several data sets, in order, read in blocks.

    Args:
        parts: data sets of text, each in its own format.
        format_name: of all parts, or ``auto``.

    Raises:
        ConfigError: the format is unknown.
        DataError: no format fits a part.
    """

    def __init__(self, parts: Sequence[Dataset], format_name: str = "auto") -> None:
        self.parts = list(parts)
        self.formats = [choose_format(format_name, part.column_names) for part in parts]
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def read(self, start: int, stop: int) -> list[Row]:
        """Return the rows from `start` up to `stop`."""
        found: list[Row] = []
        for part, name, end in zip(self.parts, self.formats, self.ends, strict=True):
            first = end - len(part)
            found += _as_rows(name, part[max(0, start - first) : max(0, min(stop, end) - first)])
        return found

    def take(self, numbers: Sequence[int]) -> list[Row]:
        """Return the rows of these numbers, which must be ascending."""
        chosen = np.asarray(numbers)
        found: list[Row] = []
        for part, name, end in zip(self.parts, self.formats, self.ends, strict=True):
            held = chosen[(chosen >= end - len(part)) & (chosen < end)] - (end - len(part))
            if len(held):
                found += _as_rows(name, part.select(held.tolist())[:])
        return found

    def blocks(self) -> Iterator[list[Row]]:
        """Yield all rows in blocks."""
        for start in range(0, len(self), BLOCK):
            yield self.read(start, start + BLOCK)

    def hashes(self) -> np.ndarray:
        """Return a 64-bit hash of each row's text, (len,) uint64, equal for equal texts in every process.

        Raises:
            DataError: a row has no text, the message has its number and the count of such rows.
        """
        found = np.empty(len(self), dtype=np.uint64)
        empty: list[int] = []
        place = 0
        for block in self.blocks():
            for row in block:
                text = row.text
                if not text.strip():
                    empty.append(place)
                digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                found[place] = int.from_bytes(digest, "little")
                place += 1
        if empty:
            raise DataError(
                f"Row {empty[0]} has no text to cluster ({len(empty):,} of {len(self):,} rows are empty). Remove "
                "such rows, or map the text columns with data.columns."
            )
        return found


def _as_rows(format_name: str, columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    names = list(columns)
    return [Row(format_name, dict(zip(names, values, strict=True))) for values in zip(*columns.values(), strict=True)]
