"""The rows of each pass in balanced order: drawn for the whole pass at once, and dealt into its steps."""

from __future__ import annotations

import hashlib
import logging
import time
from math import ceil
from typing import NamedTuple

import numpy as np

from colm.choosing import AtRandom, Step
from colm.config import SelectionConfig
from colm.mixing import Passes
from colm.ordering import deal_balanced
from colm.row_features import RowFeatures

logger = logging.getLogger(__name__)

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
        pool_rows: N, the rows of a full pool.
        slots: micro-batches of a full pool on all ranks.
        length: rows of a pass that are in pools; the last of its order are not dealt.
    """

    def __init__(
        self,
        passes: Passes,
        features: RowFeatures,
        config: SelectionConfig,
        small: frozenset[str],
        *,
        pool_rows: int,
        slots: int,
        length: int,
    ) -> None:
        self.passes, self.features = passes, features
        self.pool_rows, self.length = pool_rows, length
        self._config, self._small = config, small
        self._pools = [min(pool_rows, length - start) for start in range(0, length, pool_rows)]
        # Of a last pool that is not full: as one process would have, so that the pass does not depend on the ranks.
        self._slots = [ceil(rows * slots / pool_rows) for rows in self._pools]
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
                    len(self._pools),
                    seconds,
                )
        return self._dealt[1]

    def _deal(self, epoch: int) -> DealtPass:
        rows = self.passes.rows(epoch)[: self.length]
        done = epoch * len(self._pools)
        budgets = [
            self._config.kept_rows(pool, slots, step=done + step)
            for step, (pool, slots) in enumerate(zip(self._pools, self._slots, strict=True))
        ]
        stands_for = self._draw(rows, sum(budgets), epoch)
        kept, left = stands_for.nonzero()[0], (stands_for == 0).nonzero()[0]
        step_of, steps = np.empty(len(rows), dtype=np.int64), np.arange(len(budgets))
        step_of[kept[deal_balanced(self.features.values[rows[kept]], budgets)]] = np.repeat(steps, budgets)
        step_of[left] = np.repeat(steps, np.subtract(self._pools, budgets))
        order = np.argsort(step_of, kind="stable")
        return DealtPass(rows[order], stands_for[order])

    def _draw(self, rows: np.ndarray, budget: int, epoch: int) -> np.ndarray:
        """Return how many rows of the pass each of its rows stands for, (length,) float64, as if it were one pool."""
        count = len(rows)
        if budget == count:
            return np.ones(count)
        config = SelectionConfig(
            features="none", keep_count=budget, by_source=self._config.by_source, seed=self._config.seed
        )
        step = Step(epoch, None, self.passes.facts(rows, slots=1), config, self._small, {})
        if len(step.small) >= budget:  # for the whole pass, so also if they fit exactly
            logger.warning(OVERFLOW, len(step.small), budget)
        drawn = AtRandom().draw(step)
        found = np.zeros(count)
        found[list(drawn)] = list(drawn.values())
        return found
