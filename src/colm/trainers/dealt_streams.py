"""Balanced order of a stream: its rows are read, drawn, and dealt into steps a window at a time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from colm.balanced import PoolSize, deal_pools
from colm.choosing import Chosen, Step, keep_rows
from colm.config import SelectionConfig
from colm.errors import ConfigError, DataError
from colm.mixing import facts_of
from colm.row_features import make_features
from colm.step.labels import has_label
from colm.step.pool_info import REPEATED, PoolFacts, index_by_source
from colm.step.ranks import gather_rows
from colm.step.sources import find_small_seen
from colm.trainers.checks import check_dealt_stream, pool_rows
from colm.trainers.columns import DEALT_KEY, INDEX_KEY, SOURCE_KEY
from colm.trainers.streams import NumberedPasses, RunningSizes, readers

logger = logging.getLogger(__name__)

WINDOWS = 10_007
"""Windows of a pass before their draws may be those of the next pass. Only 32 bits of a seed count."""


class Sizes(NamedTuple):
    """Rows of each source of a stream before its first window is dealt."""

    of: dict[str, int]
    estimated: bool  # from the first rows; else they stay


class DealtStream(NumberedPasses):
    """The labeled rows of a coded stream, dealt into pools, each with how many rows it stands for.

    A window is drawn and dealt as a pass of map-style data is, see `deal_pools`. Nothing is carried to the next one:
    all of its rows were trained then, so their sum is that of all rows read. What a pass yields depends only on the
    rows and on what is given here, so a resumed run deals again what it skips.

    Args:
        rows: the coded stream.
        names: code -> source; may grow.
        config: which rows to keep, and the features by which they are dealt.
        sizes: of the sources.
        window: rows of a window, a multiple of the pool's.
        pool: the size of a full pool.
        fills: at the end, repeat a row without its labels until the last batches of this size are full; 1: do not.
        drops: at the end, drop rows that do not fill a batch of this size; 1: do not.
    """

    def __init__(
        self,
        rows: Any,
        names: Sequence[str],
        config: SelectionConfig,
        sizes: Sizes,
        *,
        window: int,
        pool: PoolSize,
        fills: int = 1,
        drops: int = 1,
    ) -> None:
        super().__init__(rows)
        self._names, self._config, self._sizes = names, config, sizes
        self._window, self._pool, self._fills, self._drops = window, pool, fills, drops
        self._warned = False

    @property
    def digest(self) -> str:
        """A text that differs if the same rows would be dealt in another way."""
        config = self._config
        kept = config.kept_rows(*self._pool)
        rules = (config.order_by, config.by_source, config.seed, config.small_sources, kept)
        told = repr((rules, sorted(self._sizes.of.items()), self._window, self._pool))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = int(self._epoch)
        running = RunningSizes(self._sizes.of)
        rows = (row for row in super().__iter__() if has_label(row))
        for number in count():
            window = list(islice(rows, self._window))
            window = window[: len(window) - len(window) % self._drops]
            if not window:
                return
            yield from self._deal(window, running, epoch * WINDOWS + number)
            if missing := -len(window) % self._fills:
                yield from [{**window[-1], INDEX_KEY: REPEATED, DEALT_KEY: 0.0}] * missing

    def _deal(self, window: list[dict[str, Any]], running: RunningSizes, number: int) -> Iterator[dict[str, Any]]:
        sources = [self._names[row[SOURCE_KEY]] for row in window]
        present, codes = np.unique(sources, return_inverse=True)  # by name: codes may differ after a resume
        features = make_features(self._config.order_by, codes, len(present), window).values
        facts = facts_of(sources, [int(row[INDEX_KEY]) for row in window], slots=1)
        step = Step(number, None, facts, self._config, self._find_small(facts, running), {})
        order, stands_for = deal_pools(step, features, self._pool, warn=self._warn_once)
        for place, stands in zip(order.tolist(), stands_for.tolist(), strict=True):
            yield {**window[place], DEALT_KEY: stands}

    def _warn_once(self, message: str, *values: int) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(message.replace("pass", "window of the stream"), *values)

    def _find_small(self, window: PoolFacts, running: RunningSizes) -> frozenset[str]:
        """Return the small sources, by the sizes given, or by all rows read in this pass."""
        if self._sizes.estimated:
            running.meet(window.source)
            running.add(index_by_source(range(len(window.source)), window))
        sizes = running.sizes if self._sizes.estimated else self._sizes.of
        return find_small_seen(sizes, self._config.small_sources)


class DealtRows:
    """Chooses the rows that a stream has dealt to the step."""

    def __init__(self) -> None:
        self._stands_for = torch.empty(0)  # of this rank's rows of the pool

    def tell(self, stands_for: Sequence[Tensor]) -> None:
        """Say how many rows each row of this rank's pool stands for, (n,) float32 of each micro-batch."""
        self._stands_for = torch.cat(list(stands_for)) if stands_for else torch.empty(0)

    def choose(self, step: Step) -> Chosen:
        """Return the rows that were dealt to the step, and others of its pool if a micro-batch would be empty.

        Raises:
            DataError: the rows are not those of one step, so the data loader was replaced or the ranks disagree.
        """
        assert step.pool is not None
        facts = step.facts
        stands_for = torch.cat(gather_rows(self._stands_for.to(step.pool.device))).tolist()
        numbers = [facts.dataset_index[p] for p in facts.recorded]
        if len(stands_for) != len(facts.source) or len(set(numbers)) < len(numbers):
            raise DataError(
                f"The rows of step {step.number} are not those of one step of the balanced order. Leave the training "
                "data loader and the data collator as they are, and run all processes on the same kind of machine."
            )
        return keep_dealt(step, {p: stands_for[p] for p in facts.learnable})


def keep_dealt(step: Step, stands_for: Mapping[int, float]) -> Chosen:
    """Keep the rows that stand for any, and others if a micro-batch would be empty.

    Args:
        step: the step.
        stands_for: of each labeled row of the pool, how many rows it stands for, 0 if it is left out.
    """
    counts = {p: each for p, each in stands_for.items() if each}
    spare = [p for p in stands_for if p not in counts]
    return keep_rows(step, counts | dict.fromkeys(spare[: max(0, step.facts.slots - len(counts))], 1.0))


def pool_size(args: Any) -> PoolSize:
    """Return the size of a full pool by the Trainer's arguments."""
    return PoolSize(pool_rows(args), args.gradient_accumulation_steps * args.world_size)


def deal_stream(
    stream: Any, args: Any, config: SelectionConfig, names: Sequence[str], sizes: Sizes, window: int
) -> DealtStream:
    """Return a coded stream in balanced order.

    Args:
        stream: the coded stream.
        args: the Trainer's arguments.
        config: which rows to keep, and the features by which they are dealt.
        names: code -> source.
        sizes: of the sources.
        window: the most rows of a window.

    Raises:
        ConfigError: a setting that a stream in balanced order cannot have.
    """
    check_dealt_stream(config)
    pool = pool_size(args)
    found, batch = readers(stream, args.dataloader_num_workers), args.per_device_train_batch_size * args.world_size
    if found > 1:
        raise ConfigError(
            f"dataloader_num_workers={args.dataloader_num_workers} would read the stream in {found} processes, each "
            "with a part of its rows, so none could deal them with order='balanced'; set it to 0 or 1."
        )
    if window < 2 * pool.rows:
        raise ConfigError(
            f"The window of {window} rows of the stream must hold at least 2 pools of {pool.rows} rows for "
            f"order='balanced'; set it (data.window) to {2 * pool.rows} or more, better some 20 pools."
        )
    window -= window % pool.rows
    logger.info("The order of the stream's rows is balanced by %s in windows of %d rows.", config.order_by, window)
    return DealtStream(
        stream,
        names,
        config,
        sizes,
        window=window,
        pool=pool,
        fills=batch if args.world_size > 1 else 1,
        drops=batch if args.dataloader_drop_last else 1,
    )
