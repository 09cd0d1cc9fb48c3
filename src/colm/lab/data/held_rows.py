"""Held-out rows as text: stored by a run, so that it can evaluate and exclude them again."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from datasets import Dataset

from colm.errors import DataError
from colm.lab.data.chat import SEEN
from colm.lab.data.columns import read_column
from colm.lab.data.prompts import Keys, prompt_keys
from colm.lab.data.schemas import COLUMNS, SYSTEM, choose_format
from colm.step.record import StepLog
from colm.step.values import text_of_value

BATCH = 1000
"""Rows read at a time."""


@dataclass(frozen=True)
class TextRows:
    """Held-out rows of one format, with the interface of a data set.

    Attributes:
        format: a key of `schemas.COLUMNS`.
        rows: column -> value, the source among them.
    """

    format: str
    rows: Sequence[Mapping[str, Any]]

    @property
    def column_names(self) -> list[str]:
        """The columns of all rows."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


Parts = Sequence[Dataset | TextRows]


def part_keys(part: Dataset | TextRows, format_name: str = "auto") -> Iterator[Keys]:
    """Yield each row's prompts, see `prompt_keys`. Raises DataError if no format fits the columns."""
    name = format_of(part, format_name)
    if isinstance(part, TextRows):
        yield from (prompt_keys(name, row) for row in part)
        return
    columns = [column for column in (*COLUMNS[name], "input", SYSTEM, *SEEN) if column in part.column_names]
    for batch in part.select_columns(columns).iter(batch_size=BATCH):
        yield from (
            prompt_keys(name, dict(zip(batch, values, strict=True))) for values in zip(*batch.values(), strict=True)
        )


def part_sources(part: Dataset | TextRows, column: str) -> list[str]:
    """Return the source of each row; equal names are one object."""
    labels = (row[column] for row in part) if isinstance(part, TextRows) else read_column(part, column)
    return [sys.intern(str(label)) for label in labels]


def format_of(part: Dataset | TextRows, format_name: str = "auto") -> str:
    """Return the format of a part's rows, inferred from its columns if `format_name` is ``auto``.

    Raises:
        ConfigError: the format is unknown.
        DataError: a column that the format needs is missing, or no format fits.
    """
    if isinstance(part, TextRows):
        return part.format
    return choose_format(format_name, part.column_names)


def write_row(name: str, row: Mapping[str, Any]) -> str:
    """Return a row of the format `name` as a JSON line for `read_held_out`. Dates are written as text."""
    return json.dumps({"format": name, "row": dict(row)}, default=_plain) + "\n"


def write_rows(parts: Parts, format_name: str = "auto") -> Iterator[str]:
    """Yield the line of every row, one at a time."""
    for part in parts:
        name = format_of(part, format_name)
        yield from (write_row(name, row) for row in part)


def read_held_out(path: Path) -> list[TextRows]:
    """Read a run's held-out rows. Raises DataError if a line is damaged."""
    return group_rows(_checked(path, line, number) for number, line in enumerate(StepLog(path).read(whole=True), 1))


def group_rows(lines: Iterable[Mapping[str, Any]]) -> list[TextRows]:
    """Return the rows from lines of `write_row` in order, grouping consecutive rows of one format and column set."""
    groups = groupby(lines, key=lambda line: (line["format"], tuple(line["row"])))
    return [TextRows(name, [line["row"] for line in held]) for (name, _), held in groups]


def _checked(path: Path, line: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    if line.get("format") in COLUMNS and isinstance(line.get("row"), dict):
        return line
    raise DataError(
        f"{path}, line {number}, is not a held-out row written by colm train, with a format and a row. Restore the "
        "file from a copy."
    )


def _plain(value: Any) -> str | None:
    try:
        return text_of_value(value)
    except TypeError:
        return f"<{type(value).__name__}>"  # for example an image, which no format reads
