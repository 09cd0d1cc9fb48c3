"""The records that pass between the stages of one selection step.

Symbols, here and everywhere: n rows on this rank, N rows over all ranks, T tokens, D raw feature
size, h kept coordinates, S sources, K kept rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Batch = dict[str, Any]
"""One micro-batch as a collator returns it: tensors whose first dimension is the row."""


class Features(Protocol):
    """Per-example features that need not exist as one (n, D) matrix.

    A full value projection of an 8 B-parameter model has D = 4 million, so that (n, D) float32 for
    a pool of 128 is 2 GB. Stages therefore ask for a few rows at a time.
    """

    @property
    def dim(self) -> int:
        """D, the number of coordinates of one example."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the rows live."""
        ...

    def __len__(self) -> int:
        """n, the number of examples."""
        ...

    def rows(self, indices: Tensor) -> Tensor:
        """Return the rows `indices` (k,) int64 as (k, D) float32, which the caller may overwrite."""
        ...

    def columns(self, indices: Tensor, columns: Tensor) -> Tensor:
        """Return the rows `indices` (k,) int64 at the coordinates `columns` (h,) int64, as (k, h) float32."""
        ...

    def finite(self) -> Tensor:
        """Return which rows are finite, (n,) bool."""
        ...


class AdamHistory(NamedTuple):
    """Running first and second moment of the kept big-source examples' gradients."""

    m: Tensor  # (D,) float32
    v: Tensor  # (D,) float32
    updates: int  # how many steps have been folded in


class Coreset(NamedTuple):
    """The rows of a pool that are trained on, the same on every rank.

    `indices` count through the pool in the order in which rank 0, rank 1, ... hold its rows; with
    one process that is the row order of the batches handed to ``select``.
    """

    indices: Tensor  # (K,) int64, ascending, on the CPU
    weights: Tensor  # (K,) float32, on the CPU; uniform weights are 1/K


class StepRecord(NamedTuple):
    """What one selection step did: one line of ``selection.jsonl``."""

    step: int  # optimizer steps committed before this one
    pool: dict[str, list[int]]  # source -> dataset indices of its pool rows
    kept: dict[str, list[int]]  # source -> dataset indices of its kept rows
    tokens: dict[str, int]  # source -> tokens of its kept rows, without padding
    small_kept: int  # kept rows that belong to small sources
    unlabelled: int  # pool rows dropped because no token of theirs has a label
    nonfinite: int  # pool rows whose features were not finite
    seconds: float  # wall-clock seconds from the pool to its coreset
    match: float | None = None  # cosine of the kept big rows' mean normalized feature with the pool's; None without
    match_random: float | None = None  # what as many random rows of each source would be expected to have
    weights: dict[str, list[float]] | None = None  # of the kept rows in the loss; None: all the same
    step_seconds: float | None = None  # of the whole step, from fetching the pool to the optimizer's step

    @property
    def pool_count(self) -> int:
        """Rows in the pool, over all ranks."""
        return sum(len(rows) for rows in self.pool.values())

    @property
    def kept_count(self) -> int:
        """Rows kept, over all ranks."""
        return sum(len(rows) for rows in self.kept.values())
