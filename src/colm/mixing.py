"""The rows of each pass over the data: all of them, or of each source its share, by temperature or as given."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler

from colm.errors import ConfigError, DataError, suggest
from colm.step.pool_info import PoolFacts
from colm.step.sources import name_keys
from colm.typed import show


def check_names(
    what: str, names: Mapping[str, object], sources: Sequence[str], gone: Mapping[str, str] | None = None
) -> None:
    """Check that a setting by source names only existing sources.

    Args:
        what: the setting's name.
        names: the source names in the setting.
        sources: the existing sources.
        gone: sources without a row left, as `RowsLeft.gone`.

    Raises:
        DataError: a source does not exist (the message suggests the nearest one), or has no row left (and why).
    """
    known = set(sources)
    for name in names:
        if name not in known and gone and name in gone:
            raise DataError(f"{what} names {name!r}, which {gone[name]}. The other sources are: {', '.join(sources)}.")
        if name not in known:
            raise DataError(
                f"{what} names {name!r}, which is not a source of the data.{suggest(name, sources)} "
                f"The sources are: {', '.join(sources)}."
            )


def temperature_shares(sizes: Mapping[str, int], temperature: float) -> dict[str, float]:
    """Return each source's share of the rows, in proportion to size^(1 / temperature).

    Args:
        sizes: source -> rows, at least 0; an empty source gets the share 0.
        temperature: finite, above 0. 1 leaves the mixture unchanged, larger values approach equal shares, smaller ones
            favor large sources.

    Raises:
        ConfigError: the temperature is outside its range.

    Source: XLM (Lample and Conneau, 2019) and mT5 (Xue et al., 2021), which set the exponent, 1 / temperature: mT5's
    0.3 is a temperature of 3.33.

    >>> temperature_shares({"a": 81, "b": 1}, 4)
    {'a': 0.75, 'b': 0.25}
    """
    number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
    if not (number and math.isfinite(temperature) and temperature > 0):
        raise ConfigError(
            f"temperature={show(temperature)} must be a finite number above 0; 1 leaves the mixture unchanged, larger "
            "values bring the sources' shares closer to each other."
        )
    largest = max(sizes.values(), default=0)
    raw = {name: (size / largest) ** (1 / temperature) if size else 0.0 for name, size in sizes.items()}
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()}


def fixed_shares(
    setting: str, weights: Mapping[Any, float], sources: Sequence[str], gone: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Return each source's weight as a fraction of the total.

    Args:
        setting: the setting's name, for messages.
        weights: source -> weight, finite, at least 0, one for every source; 0 leaves a source out.
        sources: the existing sources.
        gone: source -> why it has no rows left, see `RowsLeft.gone`.

    Raises:
        DataError: a source does not exist, has no rows left or has no weight, or no weight is above 0.
        ConfigError: a weight is negative or not finite, or two keys name the same source.

    >>> fixed_shares("shares", {"a": 3, "b": 1}, ["a", "b"])
    {'a': 0.75, 'b': 0.25}
    """
    weights = name_keys(setting, weights)
    check_names(setting, weights, sources, gone)
    for name, weight in weights.items():
        if not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
            raise ConfigError(f"{setting}[{name!r}]={show(weight)} must be a finite number of at least 0.")
    missing = [name for name in sources if name not in weights]
    if missing:
        raise DataError(
            f"{setting} has no weight for the source {missing[0]!r}; give every source one, 0 to leave it out. "
            f"The sources are: {', '.join(sources)}."
        )
    total = sum(weights.values())
    if total <= 0:
        raise DataError(f"All {setting} are 0, so no rows remain; give at least one source a weight above 0.")
    return {name: weights[name] / total for name in sources}


def rows_by_share(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Return how many rows of each source a pass has: its share of `total`, rounded, and at least 1 if it has any.

    >>> rows_by_share(10, {"a": 0.96, "b": 0.04, "c": 0.0})
    {'a': 10, 'b': 1, 'c': 0}
    """
    return {name: max(1, round(total * share)) if share else 0 for name, share in shares.items()}


def draw_rows(rows: np.ndarray, wanted: int, generator: np.random.Generator) -> np.ndarray:
    """Draw `wanted` of a source's rows; no row comes again before all others have.

    Args:
        rows: (n,) int64 row numbers, n at least 1 if any are wanted.
        wanted: number of rows: as many whole copies as fit, and the rest at random.
        generator: of the rest.

    Returns:
        (wanted,) int64.
    """
    if not wanted:
        return rows[:0]
    whole, rest = divmod(wanted, len(rows))
    return np.concatenate([np.tile(rows, whole), generator.permutation(rows)[:rest]])


class Passes:
    """The rows of each pass, in order, without those that have no label.

    Args:
        sources: the source of each row.
        learnable: whether each row has a label, (rows,) bool; default all.
        shuffle: draw a random order for each pass.
        order: the indices of each pass, instead of `shuffle`; with a method ``set_epoch``, it learns the pass.
        seed: of the order and of the draws.

    Attributes:
        names: the sources, sorted.
        codes: each row's source, (rows,) int64, indices of `names`.
        sizes: source -> rows that are drawn from, in one pass; without sources that have none.
        length: number of rows in one pass.
        seed: as given; it may be set.

    Raises:
        DataError: no row has a label, or `learnable` has the wrong length.
    """

    def __init__(
        self,
        sources: Sequence[str],
        learnable: Sequence[bool] | np.ndarray | None,
        shuffle: bool,
        order: Sequence[int] | Sampler[int] | None,
        seed: int,
    ) -> None:
        self._order: Any = order
        self._shuffle, self.seed = shuffle, seed
        self.names = sorted(set(sources))
        code_of = {name: code for code, name in enumerate(self.names)}
        self.codes = np.fromiter((code_of[name] for name in sources), dtype=np.int64, count=len(sources))
        if learnable is not None and len(learnable) != len(sources):
            raise DataError(
                f"learnable has {len(learnable)} entries, but sources has {len(sources)}; give one for each row."
            )
        self._learnable = np.asarray(np.ones(len(sources)) if learnable is None else learnable, dtype=bool)
        self._rows: np.ndarray = self._learnable.nonzero()[0]  # all that may be trained on
        if not len(self._rows):
            raise DataError(
                f"None of the {len(sources)} rows has a label, so there is nothing to draw; check learnable."
            )
        counts = np.bincount(self.codes[self._rows], minlength=len(self.names)).tolist()
        self.sizes = {name: count for name, count in zip(self.names, counts, strict=True) if count}
        self._drawn = False  # whether sources have the shares of `mix`
        self.length = len(self._rows)
        if order is not None and not (isinstance(order, Sized) and len(order) == len(sources)):
            self.length = len(self._ordered_rows(0))

    def mix(self, temperature: float | None, shares: Mapping[Any, float] | None) -> None:
        """Give sources other shares of a pass than they have of the rows; None and None leave them.

        Raises:
            ConfigError: both are set, or the order of the rows is fixed; or see `temperature_shares`.
            DataError: see `fixed_shares`.
        """
        if temperature is None and shares is None:
            return
        if temperature is not None and shares is not None:
            raise ConfigError(f"temperature={temperature} and shares={dict(shares)} exclude each other; leave one out.")
        if self._order is not None:
            raise ConfigError("order fixes the rows of a pass, which temperature and shares choose; leave one out.")
        if temperature is not None:
            found = temperature_shares(self.sizes, temperature)
        else:
            gone = {name: "has no row with a label" for name in self.names if name not in self.sizes}
            found = fixed_shares("shares", shares or {}, list(self.sizes), gone)
        self.sizes = {name: rows for name, rows in rows_by_share(self.length, found).items() if rows}
        self.length = sum(self.sizes.values())
        self._drawn = True

    @property
    def digest(self) -> str:
        """What must be the same for a pass to have the same rows in the same order, but for the seed and `order`."""
        held = hashlib.sha256(repr((self.names, self.sizes, self._drawn, self._shuffle)).encode())
        held.update(self.codes.data)
        held.update(self._learnable.data)
        return held.hexdigest()

    def rows(self, epoch: int) -> np.ndarray:
        """Return the row numbers of a pass, in order, (length,) int64.

        Raises:
            DataError: the order has an index out of range, or another number of rows than before.
        """
        if self._order is not None:
            rows = self._ordered_rows(epoch)
            if len(rows) != self.length:
                raise DataError(
                    f"order gave {len(rows)} rows with a label, but a pass has {self.length}; give every row once, or "
                    "the same number of labeled rows in each pass."
                )
            return rows
        rows = self._rows
        if self._drawn:
            draws, of = np.random.default_rng([self.seed, epoch]), self.codes[rows]
            parts = [
                draw_rows(rows[of == code], self.sizes.get(name, 0), draws) for code, name in enumerate(self.names)
            ]
            rows = np.sort(np.concatenate(parts))
        if self._shuffle:  # as accelerate's SeedableRandomSampler
            generator = torch.Generator().manual_seed(self.seed + epoch)
            rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
        return rows

    def facts(self, rows: np.ndarray, slots: int) -> PoolFacts:
        """Return what a draw needs to know of a pool of these rows, (n,) int64, with so many micro-batches in all."""
        return facts_of([self.names[code] for code in self.codes[rows].tolist()], rows.tolist(), slots)

    def _ordered_rows(self, epoch: int) -> np.ndarray:
        if hasattr(self._order, "set_epoch"):
            self._order.set_epoch(epoch)
        rows, last = np.fromiter(self._order, dtype=np.int64), len(self.codes) - 1
        if len(rows) and not 0 <= rows.min() <= rows.max() <= last:
            raise DataError(f"order has indices from {rows.min()} to {rows.max()}; they must be from 0 to {last}.")
        labeled: np.ndarray = rows[self._learnable[rows]]
        return labeled


def facts_of(sources: list[str], numbers: list[int], slots: int) -> PoolFacts:
    """Return what a draw needs to know of a pool of labeled rows, in one process.

    Args:
        sources: the source of each row.
        numbers: each row's number in the data.
        slots: number of micro-batches.
    """
    return PoolFacts(
        source=sources,
        dataset_index=numbers,
        labelled=[1] * len(numbers),
        tokens=[0] * len(numbers),
        slots=slots,
        rows_by_rank=[len(numbers)],
        rank=0,
    )
