"""Count the trainable rows, those with at least one label, after the trainer has prepared its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from colm.errors import DataError
from colm.step.labels import find_learnable, has_label
from colm.step.sources import RowsLeft, find_small_sources
from colm.trainers.columns import SOURCE_KEY, CodedRows, EncodedData
from colm.trainers.streams import is_stream


def count_left(dataset: Any, encoded: EncodedData, *, window: int, max_length: int | None) -> RowsLeft:
    """Count the rows of each source, before and after the trainer prepared its data.

    Args:
        dataset: the prepared data; TRL tokenizes rows and drops some.
        encoded: the data before preparation. New sources of a stream are appended to its names.
        window: number of rows to count at the start of a stream.
        max_length: tokens to which the trainer truncates rows, for messages.

    Raises:
        DataError: no rows are left.
    """
    before, names = encoded.sizes, encoded.names
    if not is_stream(dataset):
        left = count_learnable(dataset, names)
    elif encoded.learnable is not None and dataset is encoded.dataset:
        left = encoded.learnable
    else:
        left = count_window(list(islice(iter(dataset), window)), names)
        before = {name: count for name, count in before.items() if not left[name]}  # the others are not comparable
    found = RowsLeft(before, left, "a labeled token" + (f" within max_length={max_length}" if max_length else ""))
    if not any(left.values()):
        raise DataError(f"None of the {sum(before.values())} rows of train_dataset has {found.need}.")
    return found


def check_listed(counts: RowsLeft, rule: str | tuple[str, ...]) -> None:
    """Check that every source in a list of small sources has rows left. Raises as `find_small_sources`."""
    if not isinstance(rule, str):
        find_small_sources({name: rows for name, rows in counts.left.items() if rows}, rule, counts.gone)


def count_learnable(dataset: Any, names: Sequence[str]) -> dict[str, int]:
    """Count the rows of each source that have at least one label; counts may be 0.

    Without a labels column, the collator creates the labels, and all rows count.

    Args:
        dataset: a coded map-style dataset, after the trainer has prepared it.
        names: code -> source.
    """
    if isinstance(dataset, CodedRows):
        codes, learnable = dataset.codes, dataset.learnable
    else:
        codes, learnable = dataset.with_format(None)[SOURCE_KEY][:], find_learnable(dataset)
    rows = np.asarray(codes, dtype=np.int64)[learnable]
    return _count_codes(rows, names)


def count_window(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, int]:
    """Count the coded rows of each source that have at least one label. See `count_learnable`."""
    return _count_codes([row[SOURCE_KEY] for row in rows if has_label(row)], names)


def _count_codes(codes: Any, names: Sequence[str]) -> dict[str, int]:
    counts = np.bincount(np.asarray(codes, dtype=np.int64), minlength=len(names))
    return dict(zip(names, counts.tolist(), strict=True))
