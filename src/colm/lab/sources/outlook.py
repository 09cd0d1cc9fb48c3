"""What a pool and its coreset will hold of each source, by the selector's own rule."""

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
"""Pools drawn for the expected coreset: a source's standard error is below 0.03 of its standard deviation."""

NEVER = 1e-6
"""Chance below which an overflow is left out of account."""


class SourceOutlook(NamedTuple):
    """What to expect of one source."""

    rows: int
    small: bool
    in_pool: float  # expected rows in a pool
    in_coreset: float  # expected rows in its coreset
    absent: float  # chance that a pool has none of it


class Outlook(NamedTuple):
    """What to expect of a mixture's pools."""

    sources: dict[str, SourceOutlook]
    pool: int  # rows, N
    keep: int  # rows, K
    small_rows: float  # expected rows of small sources in a pool
    overflow: float  # chance that they alone exceed K


def expect_pool(
    sizes: Mapping[str, int], selection: SelectionConfig, pool_rows: int, slots: int, *, seed: int = 0
) -> Outlook:
    """Return the expected composition of a pool, drawn at random without replacement, and of its coreset.

    Pools are hypergeometric: their expectations and the chances of absence and overflow are exact. The coreset follows
    from a pool's counts by `source_quotas`, whose rounding to whole rows has no simple expectation: it is the mean
    over `DRAWS` pools, with the rows of small sources whole, or in proportion where they exceed K. A `keep_schedule`
    is taken at its last point.

    Args:
        sizes: rows of each source, above 0.
        selection: the settings.
        pool_rows: N; more than there are rows means all of them.
        slots: micro-batches over all ranks.
        seed: of the draws.

    Raises:
        ConfigError: `small_sources` names an unknown source, or the pool has no row.
        DataError: a source is empty.
    """
    if pool_rows < 1:
        raise ConfigError(f"A pool of {pool_rows} rows can not be described; it must have at least 1.")
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
    if overflow < NEVER and kept[~of_small].any():  # small sources are whole, so their expectations need no draws
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
    return pooled  # picked from all as one: in proportion, if gradients are alike


def _share(row: np.ndarray, budget: int, turn: int) -> np.ndarray:
    quotas = source_quotas({str(i): int(count) for i, count in enumerate(row)}, budget, turn)
    return np.array(list(quotas.values()), dtype=float)


def even_share(sizes: Mapping[str, int]) -> int:
    """Return the most rows that a source may have and still be small: below all rows / number of sources.

    >>> even_share({"a": 7, "b": 3})
    4
    """
    total = sum(sizes.values())
    return floor((total - 1) / len(sizes))
