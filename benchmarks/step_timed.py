"""The times of a coreset step's parts, and of its ideal.

On a CPU the clock is process time, which other processes disturb little; on a GPU it is wall time, read after the
device has finished its work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
from step_parts import Batch, group_by_length, run_floor, take_rows, train

import colm.choosing
from colm import CoresetSelector, SelectionConfig


class Round(NamedTuple):
    """The parts of a step and its ideal on the same rows, in seconds."""

    selection: float  # up to the features
    after: float
    training: float
    floor: float
    ideal: float
    kept: list[Batch]  # the kept rows, trained as in the ideal

    @property
    def step(self) -> float:
        return self.selection + self.after + self.training


def seconds(action: Callable[..., Any], *given: Any) -> float:
    start = clock()
    action(*given)
    return clock() - start


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Step:
    """One coreset step, with the time at which the features were ready."""

    def __init__(self, model: Any, config: SelectionConfig, optimizer: Any = None) -> None:
        self.model = model
        self.optimizer = optimizer
        self.selector = CoresetSelector(model, config, {"only": 100_000}, optimizer=optimizer)
        self.rows: list[int] = []

    def run(self, pool: list[Batch]) -> tuple[float, float, float]:
        """Return the seconds up to the features, after them, and in training; without a pass the first is 0."""
        ended: list[float] = []
        run_selection_pass = colm.choosing.run_selection_pass

        def timed(*args: Any, **kwargs: Any) -> Any:
            features = run_selection_pass(*args, **kwargs)
            ended.append(clock())
            return features

        start = clock()
        with mock.patch.object(colm.choosing, "run_selection_pass", timed):
            coreset = self.selector.select(pool, ["only"] * sum(len(batch["labels"]) for batch in pool))
            kept = self.selector.take(pool, coreset)
        self.rows = coreset.indices.tolist()
        selected = clock()
        train(self.model, kept, self.optimizer)
        trained = clock()
        self.selector.commit()
        features = ended[0] if ended else start
        return features - start, selected - features + clock() - trained, trained - selected

    def beside_ideal(self, pool: list[Batch]) -> Round:
        """Run a step, then its floor and its ideal, in the same number of micro-batches."""
        parts = self.run(pool)
        rows = list(range(sum(len(batch["labels"]) for batch in pool)))
        floor = seconds(run_floor, self.model, group_by_length(take_rows(pool, rows), len(pool)))
        kept = group_by_length(take_rows(pool, self.rows), len(pool))
        return Round(*parts, floor, floor + seconds(train, self.model, kept, self.optimizer), kept)
