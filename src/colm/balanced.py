"""The rows of each pass in balanced order: drawn for the whole pass at once, and dealt into its steps."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from math import ceil
from typing import NamedTuple

import numpy as np

from colm.choosing import AtRandom, Step
from colm.config import SelectionConfig
from colm.mixing import Passes
from colm.ordering import deal_balanced
from colm.row_features import RowFeatures

logger = logging.getLogger(__name__)

Warn = Callable[[str, int, int], None]

OVERFLOW = (
    "Overflow: the small sources alone have %d rows in a pass, of which %d rows are kept, so no row of a large source "
    "is trained on. Raise keep, or list fewer small_sources."
)


class DealtPass(NamedTuple):
    """The rows of one pass, pool after pool, within a pool in the order that they would have without dealing."""

    rows: np.ndarray  # (length,) int64
    stands_for: np.ndarray  # (length,) float64, how many rows each kept row stands for; 0 for one that is left out

    @property
    def digest(self) -> str:
        """A text that differs if any row is in another place."""
        return hashlib.sha256(self.rows.tobytes() + self.stands_for.tobytes()).hexdigest()[:16]


class PoolSize(NamedTuple):
    """A full pool."""

    rows: int  # N, over all ranks
    slots: int  # micro-batches on all ranks


class BalancedPasses:
    """Deals the rows of each pass into pools, and marks those that are kept.

    All rows of small sources are kept, and random rows of each large source, in proportion to its rows in the pass: as
    `AtRandom` does it for a pool. The kept rows are dealt into the pools by `deal_balanced`, as many into each as it
    would keep, and those left out are dealt by their order.

    Args:
        passes: the rows of each pass and their order before they are dealt.
        features: of all rows of the data.
        config: which rows to keep.
        small: the small sources.
        pool: the size of a full pool.
        length: rows of a pass that are in pools; the last of its order are not dealt.
    """

    def __init__(
        self,
        passes: Passes,
        features: RowFeatures,
        config: SelectionConfig,
        small: frozenset[str],
        *,
        pool: PoolSize,
        length: int,
    ) -> None:
        self.passes, self.features = passes, features
        self.pool, self.length = pool, length
        self._config, self._small = config, small
        self._steps = ceil(length / pool.rows)
        self._dealt: tuple[tuple[int, int], DealtPass] | None = None

    def deal(self, epoch: int) -> DealtPass:
        """Return the rows of a pass; the last one is remembered."""
        key = (epoch, self.passes.seed)
        if self._dealt is None or self._dealt[0] != key:
            first = self._dealt is None
            start = time.perf_counter()
            self._dealt = key, self._deal(epoch)
            seconds = self.features.seconds + time.perf_counter() - start
            if first:
                logger.info(
                    "The order of the rows is balanced by %s: %d of %d rows in %d steps, made in %.1f s.",
                    self.features.by,
                    int(np.count_nonzero(self._dealt[1].stands_for)),
                    self.length,
                    self._steps,
                    seconds,
                )
        return self._dealt[1]

    def _deal(self, epoch: int) -> DealtPass:
        rows = self.passes.rows(epoch)[: self.length]
        facts = self.passes.facts(rows, slots=1)
        step = Step(epoch, None, facts, self._config, self._small, {})
        order, stands_for = deal_pools(step, self.features.values[rows], self.pool, done=epoch * self._steps)
        return DealtPass(rows[order], stands_for)


def deal_pools(
    step: Step, features: np.ndarray, pool: PoolSize, *, done: int = 0, warn: Warn = logger.warning
) -> tuple[np.ndarray, np.ndarray]:
    """Draw among rows as if they were one pool, and deal them into pools.

    Args:
        step: the rows, all labeled, in their base order; its number decides the draw.
        features: (n, d) of the rows.
        pool: the size of a full pool; only the last one may be smaller.
        done: steps before the first pool.
        warn: logs that small sources overflow.

    Returns:
        (n,) int64, positions of the rows in the base order, pool after pool; and (n,) float64, how many rows each of
        these stands for, 0 for one that is left out.
    """
    count = len(features)
    pools = [min(pool.rows, count - start) for start in range(0, count, pool.rows)]
    # Slots of a last pool that is not full: as one process would have, so that the deal does not depend on the ranks.
    budgets = [
        step.config.kept_rows(rows, ceil(rows * pool.slots / pool.rows), step=done + number)
        for number, rows in enumerate(pools)
    ]
    stands_for = _draw(step, sum(budgets), warn)
    kept, left = stands_for.nonzero()[0], (stands_for == 0).nonzero()[0]
    step_of, steps = np.empty(count, dtype=np.int64), np.arange(len(budgets))
    step_of[kept[deal_balanced(features[kept], budgets)]] = np.repeat(steps, budgets)
    step_of[left] = np.repeat(steps, np.subtract(pools, budgets))
    order = np.argsort(step_of, kind="stable")
    return order, stands_for[order]


def _draw(step: Step, budget: int, warn: Warn) -> np.ndarray:
    """Return how many rows each row stands for, (n,) float64, if so many are kept."""
    count = len(step.facts.source)
    if budget == count:
        return np.ones(count)
    config = SelectionConfig(features="none", keep_count=budget, by_source=step.config.by_source, seed=step.config.seed)
    step = replace(step, config=config)
    if len(step.small) >= budget:  # for the whole pass, so also if they fit exactly
        warn(OVERFLOW, len(step.small), budget)
    drawn = AtRandom().draw(step)
    found = np.zeros(count)
    found[list(drawn)] = list(drawn.values())
    return found
