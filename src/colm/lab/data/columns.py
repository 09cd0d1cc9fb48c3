"""The cells of one column, without all of them in memory as Python objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import Dataset

BATCH = 10_000
"""Rows read at a time: reading single rows is slow."""


def read_column(rows: Dataset, column: str) -> Iterator[Any]:
    """Yield the cells of a column, as `datasets` decodes them."""
    for batch in rows.with_format(None).select_columns(column).iter(batch_size=BATCH):
        yield from batch[column]
