"""Which rows of a data set have a label to learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from colm.step.pool import IGNORE

LABELS = "labels"


def has_label(row: Mapping[str, Any]) -> bool:
    """Return whether a row has at least one label; a row without a labels key gets labels from the collator."""
    labels = row.get(LABELS)
    if labels is None or np.ndim(labels) != 1:
        return True
    return bool((np.asarray(labels)[1:] != IGNORE).any())  # nothing predicts a row's first token


def find_learnable(dataset: Dataset) -> np.ndarray:
    """Return which rows of a dataset have at least one label, (len,) bool; see `has_label`."""
    learnable = np.ones(len(dataset), dtype=bool)
    if LABELS not in dataset.column_names or dataset.format["type"] == "custom":  # a transform may create other labels
        return learnable
    plain, start = dataset.with_format("arrow").select_columns([LABELS]), 0
    for table in plain.iter(batch_size=10_000):
        lists = table[LABELS].combine_chunks()
        if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)) or lists.null_count:
            return learnable
        told = np.concatenate([[0], np.cumsum(lists.flatten().to_numpy(zero_copy_only=False) != IGNORE)])
        ends = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))
        firsts = np.minimum(ends, np.concatenate([[0], ends[:-1]]) + 1)
        learnable[start : start + len(lists)] = told[ends] > told[firsts]
        start += len(lists)
    return learnable
