"""The counted cost of a run: the operations of its forwards and backwards, by the tokens of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.lab.plan.request import UNPLANNED, make_request
from colm.lab.plan.shapes import Shapes, build_shapes
from colm.lab.plan.steps import Rehearsal, Rows
from colm.lab.run.arguments import ENGINE_SETTINGS
from colm.lab.run.prepare import PreparedData
from colm.lab.run.settings import RunSettings, resolve_settings
from colm.sampler import MixtureBatchSampler
from colm.step.pool import IGNORE
from colm.step.sources import name_sources

POOLS = 200
"""Pools whose rows are drawn to estimate the mean length of what a method trains on."""


class Lengths(NamedTuple):
    """The rows of the training data: their source, tokens, and labeled tokens."""

    sources: list[str]
    tokens: np.ndarray  # (rows,)
    labeled: np.ndarray  # (rows,)

    @classmethod
    def of(cls, data: PreparedData, column: str) -> Lengths:
        """Count the tokens of tokenized rows."""
        sources: list[str] = []
        tokens, labeled = [], []
        for table in data.train.with_format("arrow").iter(batch_size=10_000):
            labels = table["labels"].combine_chunks()
            sources += name_sources(table[column].to_pylist(), column)
            tokens.append(labels.value_lengths().to_numpy())
            learned = pc.not_equal(labels.flatten(), IGNORE).to_numpy(zero_copy_only=False)
            ends = np.cumsum(tokens[-1])
            before = np.concatenate([[0], np.cumsum(learned)])
            labeled.append(before[ends] - before[ends - tokens[-1]])
        return cls(sources, np.concatenate(tokens), np.concatenate(labeled))

    def mean(self, rows: np.ndarray | slice) -> tuple[Rows, float]:
        """Return the mean row among these, in whole tokens, and how much longer the mean is than that."""
        tokens, labeled = float(self.tokens[rows].mean()), float(self.labeled[rows].mean())
        whole = max(2, round(tokens))
        return Rows(whole, min(1.0, max(1e-3, labeled / tokens))), tokens / whole


class _Costs(NamedTuple):
    """Operations."""

    row: float  # to train it
    selection: float
    noise: float  # a measurement of a step's kept rows


class Meter:
    """Counts the operations of runs that share a model and data.

    A run costs the forward and backward passes on its mean rows, on one of its processes, its selections, and its
    measurements of the gradient noise. Padding, evaluations, the optimizer's step, and whatever is not a matrix product
    or attention are not counted, nor is what `reuse_forward` saves.

    Args:
        settings: the settings of one of the runs, whose sources have their own shares of the data.
        data: its data.

    Raises:
        ConfigError: the data is a stream, or `colm plan` cannot count the model.
    """

    def __init__(self, settings: RunSettings, data: PreparedData) -> None:
        if settings.data.streaming:
            raise ConfigError(
                "--equal time counts the tokens of the rows, which is not possible for a stream; use --equal steps, or "
                "data.streaming=false."
            )
        self._lengths = Lengths.of(data, settings.data.source_column)
        self._shapes: Shapes | None = None
        self._known: dict[Any, _Costs] = {}

    def operations(self, values: Mapping[str, Any]) -> float:
        """Return the operations of a whole run with these settings."""
        left_out = (*UNPLANNED, *ENGINE_SETTINGS)
        counted = {key: value for key, value in values["training"].items() if key not in left_out}
        settings = resolve_settings({**values, "training": counted})
        training, selection = settings.arguments, settings.selection
        micro_batches, steps = training["gradient_accumulation_steps"], training["max_steps"]
        pool = training["per_device_train_batch_size"] * micro_batches
        kept = [selection.kept_rows(pool, micro_batches, step=step) for step in range(steps)]
        costs = self._of_rows(settings, pool, round(sum(kept) / steps))
        measured = (steps - 1) // selection.noise_every if selection.noise_every else 0
        selected = sum(selection.selects_at(step) for step in range(steps))
        return costs.row * sum(kept) + costs.selection * selected + costs.noise * measured

    def _of_rows(self, settings: RunSettings, pool: int, kept: int) -> _Costs:
        config = replace(settings.selection, keep=kept / pool, keep_count=None, keep_schedule=(), seed=0)
        key = (pool, str(config.to_dict()), settings.data.temperature, str(settings.data.weights))
        if key not in self._known:
            self._known[key] = self._count(settings, config, pool, kept)
        return self._known[key]

    def _count(self, settings: RunSettings, config: SelectionConfig, pool: int, kept: int) -> _Costs:
        request = make_request(settings)
        if self._shapes is None:
            self._shapes = build_shapes(request.model)
        sources = self._lengths.sources
        sampler = MixtureBatchSampler(
            sources,
            kept,
            kept / pool,
            rank=0,
            world_size=1,
            seed=config.seed,
            small_sources=config.small_sources,
            by_source=config.by_source,
            temperature=settings.data.temperature,
            shares=settings.data.weights or None,
        )
        alike = not sampler.small and settings.data.temperature is None and not settings.data.weights
        mean, longer = self._lengths.mean(slice(None) if alike else np.concatenate(list(islice(sampler, POOLS))))
        rehearsal, some = self._rehearse(request.selection, mean), min(pool, 8)
        trained = rehearsal.train(2, accumulated=False).flops / 2 * longer
        of_noise = rehearsal.measure_noise(some, 2).flops / request.selection.kept_rows(2 * some, 2, step=1)
        noise = of_noise * longer * kept
        big = np.flatnonzero([name not in sampler.small for name in sources])
        if config.features == "none" or not len(big):
            return _Costs(trained, 0.0, noise)
        seen = pool * len(big) / len(sources)
        mean, longer = self._lengths.mean(big)
        selected = self._rehearse(request.selection, mean).select(some, 2).flops / (2 * some) * longer * seen
        return _Costs(trained, selected, noise)

    def _rehearse(self, selection: SelectionConfig, mean: Rows) -> Rehearsal:
        assert self._shapes is not None
        return Rehearsal(self._shapes, selection, mean, device="cpu")


def steps_of_cost(budget: float, cost: Callable[[int], float], *, start: int) -> int:
    """Return the largest number of steps, at least 1, whose cost is within the budget.

    Args:
        budget: the most that the run may cost.
        cost: of a run of that many steps; it does not decrease.
        start: a number of steps to try first.

    >>> steps_of_cost(100, lambda steps: 7 * steps, start=3)
    14
    """
    low, high = 0, start
    while cost(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return max(1, low)
