"""Predict each source's rows in a pool and its coreset, by the selector's own rule."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import NamedTuple

import numpy as np
from scipy.stats import hypergeom

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.select.quota import source_quotas
from colm.step.sources import find_small_sources

DRAWS = 2000
"""Number of pools drawn for the expected coreset: the standard error is below 0.03 standard deviations."""

NEVER = 1e-6
"""Probability below which an overflow is ignored."""


class SourceOutlook(NamedTuple):
    """Expected rows of one source."""

    rows: int
    small: bool
    in_pool: float  # expected rows in a pool
    in_coreset: float  # expected rows in its coreset
    absent: float  # probability that a pool has no row of the source


class Outlook(NamedTuple):
    """Expected composition of a mixture's pools."""

    sources: dict[str, SourceOutlook]
    pool: int  # rows, N
    keep: int  # rows, K
    small_rows: float  # expected rows of small sources in a pool
    overflow: float  # probability that small sources alone exceed K


def expect_pool(
    sizes: Mapping[str, int], selection: SelectionConfig, pool_rows: int, slots: int, *, seed: int = 0
) -> Outlook:
    """Return the expected composition of a pool, drawn at random without replacement, and of its coreset.

    Pools are hypergeometric: the expectations and the probabilities of absence and overflow are exact. The coreset
    follows from a pool's counts by `source_quotas`, whose rounding to whole rows has no simple expectation. It is
    therefore the mean over `DRAWS` pools, with small sources whole, or in proportion if they exceed K. A
    `keep_schedule` is evaluated at its last point.

    Args:
        sizes: rows of each source, above 0.
        selection: the selection settings.
        pool_rows: rows per pool, N; capped at the number of rows.
        slots: micro-batches over all ranks.
        seed: random seed.

    Raises:
        ConfigError: `small_sources` names an unknown source, or the pool has no rows.
        DataError: a source is empty.
    """
    if pool_rows < 1:
        raise ConfigError(f"A pool of {pool_rows} rows cannot be described; pool_rows must be at least 1.")
    sizes = dict(sorted(sizes.items()))
    names, counts = list(sizes), np.array(list(sizes.values()))
    total = int(counts.sum())
    pool = min(pool_rows, total)
    small = find_small_sources(sizes, selection.small_sources)
    of_small = np.array([name in small for name in names])
    last = selection.keep_schedule[-1][0] if selection.keep_schedule else 0
    keep = selection.kept_rows(pool, slots, step=int(last))
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(counts, pool, size=DRAWS, method="marginals")
    held = [_keep(row, of_small, keep, turn, by_source=selection.by_source) for turn, row in enumerate(drawn)]
    kept = np.mean(held, axis=0)
    small_total = int(counts[of_small].sum())
    overflow = float(hypergeom.sf(keep, total, small_total, pool))
    if overflow < NEVER and kept[~of_small].any():  # small sources are kept whole, so their expectations need no draws
        kept[of_small] = pool * counts[of_small] / total
        kept[~of_small] *= (keep - kept[of_small].sum()) / kept[~of_small].sum()
    return Outlook(
        {
            name: SourceOutlook(
                rows=size,
                small=name in small,
                in_pool=pool * size / total,
                in_coreset=float(kept[i]),
                absent=float(hypergeom.pmf(0, total, size, pool)),
            )
            for i, (name, size) in enumerate(sizes.items())
        },
        pool,
        keep,
        pool * small_total / total,
        overflow,
    )


def _keep(row: np.ndarray, of_small: np.ndarray, keep: int, turn: int, *, by_source: bool) -> np.ndarray:
    """Return how many rows (S,) of each source are kept of a pool with the counts `row` (S,)."""
    small_rows = int(row[of_small].sum())
    if small_rows > keep:
        return _share(row * of_small, keep, turn)
    big = row * ~of_small
    left = min(keep - small_rows, int(big.sum()))
    if by_source or not big.sum():
        shares: np.ndarray = row * of_small + _share(big, left, turn)
        return shares
    pooled: np.ndarray = row * of_small + left * big / big.sum()
    return pooled  # picked from all rows as one group: in proportion, if gradients are similar


def _share(row: np.ndarray, budget: int, turn: int) -> np.ndarray:
    quotas = source_quotas({str(i): int(count) for i, count in enumerate(row)}, budget, turn)
    return np.array(list(quotas.values()), dtype=float)


def even_share(sizes: Mapping[str, int]) -> int:
    """Return the maximum size of a small source: the largest number below all rows / number of sources.

    >>> even_share({"a": 7, "b": 3})
    4
    """
    total = sum(sizes.values())
    return floor((total - 1) / len(sizes))
