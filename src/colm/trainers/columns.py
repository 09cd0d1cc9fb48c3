"""Carry each row's source and number through a data loader, as integers.

String columns do not survive to the training loop: some collators raise on them, others drop them.
So before the trainer sees the data, each row gets a source code and its row number, both int64. A
wrapped collator removes them while the real one runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset

from colm.errors import DataError, suggest
from colm.step.labels import has_label
from colm.step.pool import IGNORE, RowSpans
from colm.step.pool_info import REPEATED
from colm.step.sources import name_sources
from colm.types import Batch

SOURCE_KEY = "colm_source"
INDEX_KEY = "colm_index"
DEALT_KEY = "colm_stands_for"
"""How many rows a row stands for that a stream has dealt to a step, 0 if it is left out."""

CODES = (SOURCE_KEY, INDEX_KEY, DEALT_KEY)
ON_HOST_KEY = "colm_on_host"
"""A batch's `OnHost`, which accelerate and the pinning of memory pass on as it is."""

NO_TENSOR = (str, date, time, timedelta, Decimal, type(None))
"""Types of source labels that collators cannot convert to tensors."""


class EncodedData(NamedTuple):
    """A training set with its source codes and their names."""

    dataset: Any
    sizes: dict[str, int]  # rows of each source
    names: list[str]  # code -> source
    learnable: dict[str, int] | None = None  # for a stream, the labeled rows of each source among the first rows


class CodedRows(TorchDataset[dict[str, Any]]):
    """A map-style dataset whose rows also carry a source code and their number.

    Args:
        rows: the dataset.
        codes: each row's source code.
        learnable: whether each row has at least one label, (len,) bool.
    """

    def __init__(self, rows: Any, codes: Sequence[int], learnable: np.ndarray) -> None:
        self._rows = rows
        self.codes = codes
        self.learnable = learnable

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._rows[index], SOURCE_KEY: self.codes[index], INDEX_KEY: index}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Return a batch's rows, fetched together if the dataset supports it."""
        fetch = getattr(self._rows, "__getitems__", None)
        rows = fetch(indices) if fetch else [self._rows[index] for index in indices]
        return [{**row, SOURCE_KEY: self.codes[i], INDEX_KEY: i} for row, i in zip(rows, indices, strict=True)]


def require_column(dataset: Any, column: str, remedy: str) -> None:
    """Raise DataError, which ends with `remedy`, if map-style data has no such column for the source."""
    columns = dataset.column_names if isinstance(dataset, Dataset) else list(dataset[0])
    if column not in columns:
        raise DataError(
            f"The training data has no column {column!r} for the source.{suggest(column, columns)} "
            f"Columns: {', '.join(columns)}. {remedy}"
        )


def encode_sources(dataset: Any, column: str) -> EncodedData:
    """Add the source code and the row number to every row.

    Args:
        dataset: a `datasets.Dataset`, or any map-style dataset of mappings.
        column: the column with the source's name, or a label convertible to a name (`colm.step.sources.source_name`).

    Raises:
        DataError: the column is missing (suggests the closest name), a row has no source, or the dataset
            is empty or has no length (for those, see `streams`).
    """
    if not hasattr(dataset, "__len__"):
        raise DataError(
            f"train_dataset has type {type(dataset).__name__}. Expected a map-style dataset (with __len__), or an "
            "iterable dataset: datasets.IterableDataset or torch.utils.data.IterableDataset."
        )
    if isinstance(dataset, Mapping):
        splits = ", ".join(map(repr, dataset))
        raise DataError(
            f"train_dataset is a {type(dataset).__name__} with the splits {splits}; pass one of them, such as "
            "data['train']."
        )
    if len(dataset) == 0:
        raise DataError("train_dataset is empty; give it at least one row.")
    require_column(dataset, column, "Set source_column to the right one.")
    if isinstance(dataset, Dataset):
        labels = dataset.with_format(None)[column][:]  # a format or transform may omit the column
    else:
        told = [(row.get(column), has_label(row)) for row in (dataset[i] for i in range(len(dataset)))]
        labels = [label for label, _ in told]
    of_rows = name_sources(labels, column)
    sizes = dict(sorted(Counter(of_rows).items()))
    names = list(sizes)
    code_of = {name: code for code, name in enumerate(names)}
    codes = [code_of[name] for name in of_rows]
    if not isinstance(dataset, Dataset):
        return EncodedData(CodedRows(dataset, codes, np.array([known for _, known in told])), sizes, names)
    return EncodedData(_add_codes(dataset, codes), sizes, names)


def _add_codes(dataset: Dataset, codes: Sequence[int]) -> Dataset:
    """Return the dataset with codes and numbers as columns that its format or transform leaves unchanged.

    The dataset keeps its type, so the trainer handles and validates it as usual.
    """
    keys, kept = [SOURCE_KEY, INDEX_KEY], dataset.format
    plain = dataset.with_format(None)
    plain = plain.remove_columns([key for key in keys if key in plain.column_names])
    coded = plain.add_column(SOURCE_KEY, codes).add_column(INDEX_KEY, list(range(len(codes))))
    if kept["type"] is None and set(kept["columns"]) == set(dataset.column_names):
        return coded
    options = {"columns": [*(name for name in kept["columns"] if name not in keys), *keys]}
    options["output_all_columns"] = kept["output_all_columns"]
    if kept["type"] != "custom":
        return coded.with_format(kept["type"], **options, **kept["format_kwargs"])
    transform = kept["format_kwargs"]["transform"]

    def transform_with_codes(batch: Mapping[str, Any]) -> Any:
        made = transform({key: value for key, value in batch.items() if key not in keys})
        codes = {key: batch[key] for key in keys if key in batch}  # a view for lengths may omit them
        return {**made, **codes} if isinstance(made, Mapping) else made

    return coded.with_transform(transform_with_codes, **options)


@dataclass(frozen=True)
class OnHost:
    """What the selection must know of a micro-batch, as numbers of the host.

    Not a list or a tuple: accelerate would go through its elements.
    """

    codes: list[int]
    numbers: list[int]  # in the data
    spans: RowSpans


class CollatorWithCodes:
    """Calls the real collator without the codes, then adds them to its batch as (n,) int64 tensors.

    Args:
        collator: the real collator; called with a list of mappings.
        source_column: also dropped from rows if its value cannot become a tensor, such as a string.

    Attributes:
        describes: also add what the selection needs on the host, so that it need not wait for a GPU to which the batch
            was moved. Not for a loader that concatenates batches, such as accelerate's with ``dispatch_batches``.
    """

    describes = False

    def __init__(self, collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]], source_column: str) -> None:
        self.collator = collator
        self.source_column = source_column

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """Collate `rows`, with or without codes."""
        plain = [
            {
                key: value
                for key, value in row.items()
                if key not in CODES and not (key == self.source_column and isinstance(value, NO_TENSOR))
            }
            for row in rows
        ]
        batch = dict(self.collator(plain))
        for key in (SOURCE_KEY, INDEX_KEY):
            if rows and key in rows[0]:
                batch[key] = torch.tensor([int(row[key]) for row in rows])
        if rows and DEALT_KEY in rows[0]:
            batch[DEALT_KEY] = torch.tensor([float(row[DEALT_KEY]) for row in rows])
            repeated = batch[INDEX_KEY] == REPEATED
            if repeated.any():  # which a stream adds at its end
                batch["labels"] = batch["labels"].masked_fill(repeated[:, None], IGNORE)
        if self.describes and INDEX_KEY in batch and _is_readable(batch):
            codes, index = (batch[key].tolist() for key in (SOURCE_KEY, INDEX_KEY))
            batch[ON_HOST_KEY] = OnHost(codes, index, RowSpans.of(batch))
        return batch


def _is_readable(batch: Mapping[str, Any]) -> bool:
    """Return whether a collated batch is on the host and has one label per row and token; else the pool reports it."""
    tensors = [batch.get("labels"), batch.get("input_ids"), batch.get("attention_mask", batch.get("labels"))]
    known = [each for each in tensors if isinstance(each, torch.Tensor) and each.device.type == "cpu"]
    return len(known) == len(tensors) and all(each.dim() == 2 and each.shape == known[0].shape for each in known)


class Aside(NamedTuple):
    """The batches of a pool, and what is known of their rows."""

    batches: list[Batch]  # as they came, but for what is on the host only
    plain: list[Batch]  # also without codes
    sources: list[str]
    numbers: list[int]  # in the data
    spans: list[RowSpans | None]
    dealt: list[torch.Tensor]  # how many rows each row stands for, of a stream in balanced order


def set_codes_aside(batches: Sequence[Batch], names: Sequence[str]) -> Aside:
    """Return the batches without codes, each row's source, and each row's number.

    Raises:
        DataError: a batch has no codes because the collator was replaced after construction.
    """
    aside = Aside([], [], [], [], [], [])
    for batch in batches:
        if SOURCE_KEY not in batch or INDEX_KEY not in batch:
            raise DataError(
                f"A training batch lost {SOURCE_KEY!r}; its keys are {sorted(batch)}. Pass data_collator and "
                "train_dataset to the trainer's constructor instead of setting them afterwards."
            )
        told: OnHost | None = batch.get(ON_HOST_KEY)
        if told is None:
            codes, index = (batch[key].tolist() for key in (SOURCE_KEY, INDEX_KEY))
        else:
            codes, index = told.codes, told.numbers
        aside.batches.append({key: value for key, value in batch.items() if key != ON_HOST_KEY})
        aside.plain.append(without_codes(batch))
        aside.sources.extend(names[code] for code in codes)
        aside.numbers.extend(index)
        aside.spans.append(None if told is None else told.spans)
        if DEALT_KEY in batch:
            aside.dealt.append(batch[DEALT_KEY])
    return aside


def silence_repeats(batch: Batch, real: int) -> Batch:
    """Mask the labels of the rows that accelerate repeats to give the last batches of an epoch equal sizes.

    What was known on the host is dropped, as it no longer holds.

    Args:
        batch: this rank's part of the last batch, with codes.
        real: number of leading rows that are not repeats.
    """
    labels, index = batch["labels"].clone(), batch[INDEX_KEY].clone()
    labels[real:], index[real:] = IGNORE, REPEATED
    kept = {key: value for key, value in batch.items() if key != ON_HOST_KEY}
    return {**kept, "labels": labels, INDEX_KEY: index}


def without_codes(batch: Mapping[str, Any]) -> Batch:
    """Return the batch without what rows carry along, and what is on the host only."""
    return {key: value for key, value in batch.items() if key not in (*CODES, ON_HOST_KEY)}
