"""The settings of the selection by the part that reads them; `SelectionConfig` checks them and makes these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from colm.config_checks import FeatureName, Metric, PassDtypeName, PickName, ShortenName, WeightName


@dataclass(frozen=True)
class Budget:
    """How many rows a step keeps, and which steps have a selection pass."""

    keep: int | tuple[tuple[int, float], ...]  # rows, or a schedule of fractions of the pool
    warmup_steps: int
    every: int

    def rows(self, pool_rows: int, step: int) -> int:
        """Return how many rows of a pool to keep; a number of rows may be more than the pool has."""
        return self.keep if isinstance(self.keep, int) else round(keep_at(self.keep, step) * pool_rows)

    def least_rows(self, pool_rows: int) -> int:
        """Return the fewest rows that any step keeps: a schedule of straight lines is lowest at one of its points."""
        points = (0,) if isinstance(self.keep, int) else (step for step, _ in self.keep)
        return min(self.rows(pool_rows, step) for step in points)

    def selects_at(self, step: int) -> bool:
        """Return whether the step after `step` others may have a selection pass.

        >>> [step for step in range(9) if Budget(8, warmup_steps=3, every=2).selects_at(step)]
        [3, 5, 7]
        """
        return step >= self.warmup_steps and (step - self.warmup_steps) % self.every == 0


@dataclass(frozen=True)
class Spsa:
    """How gradients are estimated from finite differences."""

    probes: int
    eps: float
    fixed: bool  # the directions of the first step throughout


@dataclass(frozen=True)
class Features:
    """What rows of large sources are compared by."""

    kind: FeatureName  # not "none"
    adam: bool  # of gradients alone
    value_module: str | None
    spsa: Spsa | None  # of the kind of this name alone


@dataclass(frozen=True)
class Pass:
    """What the selection pass sees of a row, and how much goes through the model at a time."""

    tokens: int | None = None
    labels: int | None = None
    dtype: PassDtypeName | None = None
    head_chunk_tokens: int | None = None


@dataclass(frozen=True)
class Pick:
    """How rows of large sources are picked by their features, and weighted; see `SelectionConfig` for the values."""

    by: PickName = "medoids"
    metric: Metric = "l1"
    coordinates: int = 2560
    shorten: ShortenName = "largest"
    by_source: bool = True
    weights: WeightName = "uniform"
    carry: float = 0.0


def keep_at(schedule: Sequence[tuple[int, float]], step: int) -> float:
    """Return the fraction to keep at a step: linear between the points, constant before and after them.

    >>> [keep_at([(0, 1.0), (100, 0.5)], step) for step in (0, 50, 100, 1000)]
    [1.0, 0.75, 0.5, 0.5]
    """
    first, keep = schedule[0]
    if step <= first:
        return keep
    for following, then in schedule[1:]:
        if step < following:
            return keep + (then - keep) * (step - first) / (following - first)
        first, keep = following, then
    return keep
