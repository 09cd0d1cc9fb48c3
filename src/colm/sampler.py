"""MixtureBatchSampler: the rows that ``features="none"`` keeps, for any data loader.

The control of the method needs no gradient: it keeps the rows of small sources and draws those of large ones at random.
So it needs neither a model nor a Trainer, only each row's source. One pool, the rows of one optimizer step before the
choice, gives the kept rows of `accumulation` micro-batches on each rank.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from math import ceil
from typing import Any, Literal

import numpy as np
from torch.utils.data import DataLoader, Sampler

from colm.balanced import BalancedPasses, PoolSize
from colm.choosing import AtRandom, Step, keep_rows
from colm.config import SelectionConfig
from colm.config_checks import OrderName, WeightName
from colm.errors import ConfigError, DataError, suggest
from colm.hints import Count
from colm.mixing import Passes
from colm.row_features import RowFeatures, make_features, make_token_features
from colm.step.balance import split_evenly
from colm.step.labels import find_learnable
from colm.step.ranks import read_rank
from colm.step.sources import balance_sources, find_small_sources, name_sources, warn_of_sizes
from colm.step.weighted import RowsWithWeights, WeightedIndex, collate_with_weights
from colm.typed import read_value

AT_RANDOM = AtRandom()

SOURCES_FACT = "a digest of the rows' sources, their shares, small_sources and shuffle"
"""What a position stores under ``sources``."""


class MixtureBatchSampler(Sampler[list[int]]):
    """A batch sampler that keeps all rows of small sources and random rows of large ones.

    Pass it to a data loader as ``batch_sampler``. For the same order of indices, a step's kept rows are those of a
    `CoresetTrainer` with ``features="none"`` and the same settings, on data without unlabeled rows. By default, each
    pass is in the random order of a Trainer with the same seed.

    Args:
        sources: the source of each row of the data set: names or other labels; a list, an array, or a column.
        batch_size: kept rows of one micro-batch on one rank.
        keep: fraction of each pool to keep, in (0, 1]. A pool has ``batch_size x accumulation x world_size / keep``
            rows, rounded.
        accumulation: micro-batches of one optimizer step on one rank.
        rank: this process among the data-parallel ones; default that of the process group, or of the launcher's
            environment. ``"all"``: the micro-batches of all ranks in turn, for loaders that deal them out to ranks
            themselves, as accelerate does.
        world_size: number of data-parallel processes; default as for `rank`.
        seed: of the order and of the draws.
        small_sources: as in `SelectionConfig`: "auto", "none", or names.
        by_source: as in `SelectionConfig`.
        weights: as in `SelectionConfig`: "uniform", "represented" or "relative".
        balance: as in `SelectionConfig`.
        temperature: draw each source in proportion to its rows^(1 / temperature), see `temperature_shares`.
        shares: source -> share of the rows, in any unit; the alternative to `temperature`. With either, a pass has as
            many rows as the data (up to rounding), some repeated and others left out, drawn again in each pass.
        learnable: whether each row has a label, (rows,) bool; other rows are left out before pools are formed.
        shuffle: False keeps the rows in their own order.
        order: the indices of each pass, a sequence or a `Sampler`, instead of `shuffle`; or "balanced": the rows of a
            pass are drawn at once and dealt into its steps so that the mean of `features` over what was trained so
            far stays that of all rows, see `deal_balanced`. As many rows as otherwise are kept in each step.
        features: for the balanced order: an array (rows, d), the path of a ``.npy`` or ``.parquet`` file, see
            `read_features`, or "sources", the default. With `from_dataset` also "tokens".
        drop_last: leave out a last pool that is not full. By default, it has fewer micro-batches if it is short.

    Attributes:
        pool_rows: N, the rows of a full pool over all ranks.
        sizes: source -> rows in one pass.
        small: the small sources.
        epoch: number of the pass; a complete iteration adds 1.
        needs_weights: whether rows count differently, so that the loss must use ``row_weights``; see `loader`.

    Raises:
        ConfigError, DataError: a setting or a label is invalid; the message gives the remedy.

    Example:
        >>> sampler = MixtureBatchSampler(["big"] * 90 + ["small"] * 10, batch_size=4, keep=0.5)
        >>> len(sampler), sorted(sampler.small)
        (13, ['small'])
        >>> sum(index >= 90 for batch in sampler for index in batch)
        10
    """

    def __init__(
        self,
        sources: Iterable[Any],
        batch_size: int,
        keep: float = 0.5,
        *,
        accumulation: int = 1,
        rank: int | Literal["all"] | None = None,
        world_size: int | None = None,
        seed: int = 0,
        small_sources: Literal["auto", "none"] | Sequence[str] = "auto",
        by_source: bool = True,
        weights: WeightName = "uniform",
        balance: float = 0.0,
        temperature: float | None = None,
        shares: Mapping[Any, float] | None = None,
        learnable: Sequence[bool] | np.ndarray | None = None,
        shuffle: bool = True,
        order: Sequence[int] | Sampler[int] | OrderName | None = None,
        features: np.ndarray | str | RowFeatures | None = None,
        drop_last: bool = False,
    ) -> None:
        batch_size = read_value("batch_size", Count, batch_size)
        accumulation = read_value("accumulation", Count, accumulation)
        listed: Any = small_sources if isinstance(small_sources, str) else tuple(small_sources)
        self.config = SelectionConfig(
            keep=keep,
            features="none",
            small_sources=listed,
            by_source=by_source,
            weights=weights,
            balance=balance,
            seed=seed,
        )
        self.rank, self.world_size = read_rank(rank, world_size)
        self.accumulation = accumulation
        self.pool_rows = round(batch_size * accumulation * self.world_size / keep)
        self.drop_last = drop_last
        labels = name_sources(_to_list(sources), "sources")
        named = read_value("order", OrderName, order) if isinstance(order, str) else None
        self._passes = Passes(labels, learnable, shuffle, None if isinstance(order, str) else order, seed)
        self._passes.mix(temperature, shares)
        self.sizes = self._passes.sizes
        gone = {name: "has no rows in a pass" for name in self._passes.names if name not in self.sizes}
        self.small = find_small_sources(self.sizes, self.config.small_sources, gone)
        warn_of_sizes(self.sizes, self.config.small_sources)
        self._balance = balance_sources(self.sizes, balance) if balance else {}
        self.needs_weights = self.config.weighs
        if not len(self):
            raise DataError(
                f"One pass has {self._passes.length} rows, fewer than a pool of {self.pool_rows}, which drop_last=True "
                "leaves out; set drop_last=False, or lower batch_size, accumulation or world_size."
            )
        self._dealer = self._make_dealer(features) if named == "balanced" else None
        if features is not None and self._dealer is None:
            raise ConfigError("features are for order='balanced'; set it, or leave features out.")
        self.epoch = 0
        self._start = 0  # micro-batches of the pass to skip, once
        self._done = 0

    @classmethod
    def from_dataset(
        cls, dataset: Any, batch_size: int, keep: float = 0.5, *, source_column: str = "source", **settings: Any
    ) -> MixtureBatchSampler:
        """Make a sampler for a `datasets.Dataset` with a column of sources. Raises DataError if it has none.

        Rows without a label in its column ``labels``, if it has one, are left out. The other arguments are as above.
        """
        if source_column not in dataset.column_names:
            raise DataError(
                f"The training data has no column {source_column!r} for the source."
                f"{suggest(source_column, dataset.column_names)} Columns: {', '.join(dataset.column_names)}. "
                "Set source_column to the right one."
            )
        labels = dataset.with_format(None)[source_column][:]
        settings = make_token_features(settings, dataset)
        return cls(labels, batch_size, keep, learnable=find_learnable(dataset), **settings)

    def _make_dealer(self, features: Any) -> BalancedPasses:
        full = self._passes.length // self.pool_rows
        return BalancedPasses(
            self._passes,
            make_features(features, self._passes.codes, len(self._passes.names)),
            self.config,
            self.small,
            pool=PoolSize(self.pool_rows, self.accumulation * self.world_size),
            length=full * self.pool_rows if self.drop_last else self._passes.length,
        )

    # ---- The batches ----

    @property
    def steps_per_epoch(self) -> int:
        """Number of pools, and so of optimizer steps, in one pass."""
        full, rest = divmod(self._passes.length, self.pool_rows)
        return full + bool(rest and not self.drop_last)

    def __len__(self) -> int:
        """Return the number of micro-batches in one pass, of this rank or of all."""
        full, rest = divmod(self._passes.length, self.pool_rows)
        last = 0 if self.drop_last else self._micro_batches(rest)
        return (full * self.accumulation + last) * (self.world_size if self.rank == "all" else 1)

    def __iter__(self) -> Iterator[list[int]]:
        self._done, self._start = self._start, 0  # a loaded position counts once
        dealt = None if self._dealer is None else self._dealer.deal(self.epoch)
        rows = self._passes.rows(self.epoch) if dealt is None else dealt.rows
        first, skipped = divmod(self._done, self._batches_of_pool)
        for pool in range(first, self.steps_per_epoch):
            held = slice(pool * self.pool_rows, (pool + 1) * self.pool_rows)
            batches = self._choose(rows[held], pool, None if dealt is None else dealt.stands_for[held])
            for batch in batches[skipped:]:
                self._done += 1
                yield batch
            skipped = 0
        self.epoch += 1
        self._done = 0

    def _choose(self, pool: np.ndarray, number: int, stands_for: np.ndarray | None) -> list[list[int]]:
        """Return the micro-batches of a pool's kept rows, of this rank or of all ranks in turn.

        Args:
            pool: (n,) int64, its rows.
            number: of the pool within the pass.
            stands_for: (n,), how many rows each of them stands for, 0 if it is left out; None to draw those to keep.
        """
        micro_batches = self._micro_batches(len(pool))
        slots = micro_batches * self.world_size
        facts = self._passes.facts(pool, slots)
        step = Step(self.epoch * self.steps_per_epoch + number, None, facts, self.config, self.small, self._balance)
        if stands_for is None:
            counts = AT_RANDOM.draw(step)
        else:
            counts = {p: stands_for[p] for p in stands_for.nonzero()[0].tolist()}
        weights: list[float] = []
        if self.needs_weights:
            coreset = keep_rows(step, counts).coreset
            rows, weights = pool[coreset.indices.numpy()].tolist(), coreset.weights.tolist()
        else:
            rows = pool[sorted(counts)].tolist()
        # Fewer rows than ranks: no rank may lack a micro-batch, so a row comes several times, with its weight in all.
        places = [place % len(rows) for place in range(max(len(rows), slots))]
        times = Counter(places)
        kept: list[int] = [WeightedIndex(rows[p], weights[p] / times[p]) if weights else rows[p] for p in places]
        runs = split_evenly(kept, slots)
        if self.rank == "all":
            return [runs[rank * micro_batches + i] for i in range(micro_batches) for rank in range(self.world_size)]
        return runs[self.rank * micro_batches : (self.rank + 1) * micro_batches]

    def _micro_batches(self, rows: int) -> int:
        """Return how many micro-batches on each rank a pool of this many rows has."""
        return ceil(rows * self.accumulation / self.pool_rows)

    # ---- The data loader ----

    def loader(
        self, dataset: Any, collate_fn: Callable[[list[Any]], Mapping[str, Any]], **settings: Any
    ) -> DataLoader[Any]:
        """Return a data loader over a map-style data set of mappings.

        If rows count differently (`needs_weights`), each batch has a key ``row_weights``, (n,) float32: the rows'
        weights in the loss, with sum 1 over all micro-batches and ranks of a step. See `example_mean`.

        Args:
            dataset: the data set that `sources` describes.
            collate_fn: makes a batch of a list of rows; it does not see the weights.
            **settings: further arguments of `DataLoader`, such as ``num_workers``.
        """
        if len(dataset) != len(self._passes.codes):
            raise DataError(
                f"The data set has {len(dataset)} rows, but sources has {len(self._passes.codes)}; give one for each."
            )
        if not self.needs_weights:
            return DataLoader(dataset, batch_sampler=self, collate_fn=collate_fn, **settings)
        collate = partial(collate_with_weights, collate_fn)
        return DataLoader(RowsWithWeights(dataset), batch_sampler=self, collate_fn=collate, **settings)

    # ---- Position ----

    @property
    def sampler(self) -> MixtureBatchSampler:
        """This sampler: Lightning and accelerate call ``set_epoch`` of a batch sampler's attribute ``sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the pass, which decides its order. A position loaded for the same pass stays."""
        if epoch != self.epoch:
            self.epoch, self._start, self._done = epoch, 0, 0

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Return the position, for `load_state_dict`.

        Args:
            batches: micro-batches of this pass that were trained on; default: those handed to the data loader, which
                may be ahead of training: with workers, use torchdata's ``StatefulDataLoader``, or pass the number.
        """
        pools, rest = divmod((self._start or self._done) if batches is None else batches, self._batches_of_pool)
        return {"epoch": self.epoch, "pools": pools, "batches": rest, **self._facts(self.epoch), **self._shape()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved position; after a whole step, on any number of ranks that makes the same pools.

        Raises:
            ConfigError: the state belongs to other data or settings, under which the position means other rows.
        """
        facts = {"order": None} | self._facts(int(state.get("epoch", 0)))
        for name, now in (facts | (self._shape() if state.get("batches") else {})).items():
            if state.get(name) != now:
                what = f" ({SOURCES_FACT})" if name == "sources" else ""
                raise ConfigError(
                    f"The saved sampler has {name}={state.get(name)}, but this one has {now}{what}; resume with the "
                    "data and settings of the saved run."
                )
        self.epoch = int(state["epoch"])
        self._start = self._done = int(state["pools"]) * self._batches_of_pool + int(state["batches"])

    def _facts(self, epoch: int) -> dict[str, Any]:
        """Return what must be the same for the pools to be the same."""
        settings = {name: getattr(self.config, name) for name in ("seed", "keep", "by_source", "weights", "balance")}
        facts = {"rows": self._passes.length, "pool_rows": self.pool_rows, **settings, "sources": self._digest}
        return facts if self._dealer is None else facts | {"order": self._dealer.deal(epoch).digest}

    @cached_property
    def _digest(self) -> str:
        """A digest of the rows' sources, which of them are small, and how a pass draws and orders them."""
        return hashlib.sha256(repr((self._passes.digest, sorted(self.small))).encode()).hexdigest()[:16]

    def _shape(self) -> dict[str, int | str]:
        """Return what must also be the same within a pool."""
        return {"accumulation": self.accumulation, "ranks": "all" if self.rank == "all" else self.world_size}

    @property
    def _batches_of_pool(self) -> int:
        return self.accumulation * (self.world_size if self.rank == "all" else 1)


def _to_list(sources: Any) -> list[Any]:
    """Return the labels as a list; arrays, tensors and columns of a data set convert themselves."""
    if isinstance(sources, str):
        raise DataError(f"sources={sources!r} is one name; give the source of each row, such as dataset[{sources!r}].")
    return sources.tolist() if hasattr(sources, "tolist") else list(sources)
