"""The records passed between the stages of a selection step.

Symbols used throughout: n rows on this rank, N rows over all ranks, T tokens, D raw feature size,
h kept coordinates, S sources, K kept rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:  # reading a run's record does not need torch
    import torch
    from torch import Tensor

Batch = dict[str, Any]
"""One micro-batch as returned by a collator: tensors with rows in the first dimension."""


class Features(Protocol):
    """Per-example features that need not exist as one (n, D) matrix.

    The full value projection of an 8B-parameter model has D = 4 million, so (n, D) float32 for a pool
    of 128 takes 2 GB. Stages therefore request a few rows at a time.
    """

    @property
    def dim(self) -> int:
        """D, the number of coordinates per example."""
        ...

    @property
    def device(self) -> torch.device:
        """Device that holds the rows."""
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
    """Running first and second moments of the gradients of kept big-source examples."""

    m: Tensor  # (D,) float32
    v: Tensor  # (D,) float32
    updates: int  # number of steps included


class Coreset(NamedTuple):
    """The rows of a pool to train on, the same on every rank.

    `indices` number the pool's rows rank by rank (rank 0, rank 1, ...); with one process this is the
    row order of the batches passed to ``select``.
    """

    indices: Tensor  # (K,) int64, ascending, on the CPU
    weights: Tensor  # (K,) float32, on the CPU; uniform weights are 1/K; 0 for a row that only fills a micro-batch


class NoiseScale(NamedTuple):
    """The gradient noise scale in rows, see `colm.noise`, as far as it is known."""

    rows: int  # of the step that was measured last
    overall: float | None  # of all rows as they are trained; None while it is not known
    sources: dict[str, float]  # of each source where it is known


class StepRecord(NamedTuple):
    """The result of one selection step: one line of ``selection.jsonl``."""

    step: int  # optimizer steps committed before this one
    pool: dict[str, list[int]]  # source -> dataset indices of its pool rows
    kept: dict[str, list[int]]  # source -> dataset indices of its kept rows
    tokens: dict[str, int]  # source -> tokens of its kept rows, without padding
    small_kept: int  # kept rows that belong to small sources
    unlabelled: int  # pool rows dropped because they have no labeled token
    nonfinite: int  # pool rows whose features were not finite
    seconds: float  # wall-clock seconds from the pool to its coreset
    match: float | None = None  # cosine of the kept big rows' mean normalized feature with the pool's, if any
    match_random: float | None = None  # expected match of the same number of random rows per source
    weights: dict[str, list[float]] | None = None  # loss weights of the kept rows; None means uniform
    step_seconds: float | None = None  # duration of the whole step, from fetching the pool to the optimizer step
    noise: NoiseScale | None = None  # with this step's measurement; None for a step without one

    @property
    def pool_count(self) -> int:
        """Rows in the pool, over all ranks."""
        return sum(len(rows) for rows in self.pool.values())

    @property
    def kept_count(self) -> int:
        """Rows kept, over all ranks."""
        return sum(len(rows) for rows in self.kept.values())
