"""Train on recorded choices again: a selector that reads `selection.jsonl` instead of choosing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from colm.config import SelectionConfig
from colm.errors import ConfigError, DataError
from colm.picking import NO_PICKS
from colm.selector import CoresetSelector
from colm.step.pool import Pool
from colm.step.pool_info import PoolFacts, fillers, index_by_source, recorded, share_facts
from colm.step.record import StepLog, read_records
from colm.types import Coreset, StepRecord


class ReplaySelector(CoresetSelector):
    """Keeps the rows that a run kept, with the weights that they had; there is no selection pass.

    Args:
        model: as it is trained.
        record: the run's ``selection.jsonl``.
        config: the run's.
        source_sizes: the run's.
        pad_token_id: as `CoresetSelector`'s.

    Attributes:
        steps: how many the record holds.

    Raises:
        ConfigError: there is no record, or it holds no step.
        DataError: a line of it is damaged, or the last one is not whole.
    """

    def __init__(
        self,
        model: nn.Module,
        record: Path,
        config: SelectionConfig,
        source_sizes: Mapping[str, int] | None = None,
        *,
        pad_token_id: int | None = None,
    ) -> None:
        super().__init__(model, config, source_sizes, pad_token_id=pad_token_id)
        self._log = StepLog(record)
        self.steps = sum(1 for _ in self._log.read(whole=True))
        if self.steps == 0:
            raise ConfigError(f"{record} holds no step to replay; give the selection.jsonl of a run.")
        self._records: Iterator[StepRecord] = iter(())
        self._read_to = 0

    def select(
        self,
        batches: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        sources: Sequence[Any],
        *,
        dataset_index: Sequence[int] | None = None,
    ) -> Coreset:
        """Return the recorded coreset of this step.

        Raises:
            DataError: the pool is another one than the record's, so seed, data or batch size differ.
            ConfigError: the record has no such step.
        """
        start = time.perf_counter()
        facts = share_facts(Pool(batches, self.pad_token_id), sources, dataset_index, self.source_sizes)
        then = self._read(self.state.step)
        pool = index_by_source(recorded(facts.order, facts), facts)
        if pool != then.pool:
            raise DataError(
                f"The pool of step {self.state.step} is not the recorded one: {_difference(pool, then.pool)}. "
                "Replay with the data, seed, batch size and number of ranks of the run."
            )
        coreset = _recorded_coreset(facts, then)
        record = self._record(facts, coreset, NO_PICKS, time.perf_counter() - start)
        record = record._replace(nonfinite=then.nonfinite, match=then.match, match_random=then.match_random)
        self.state.prepare(None, None, record)
        return coreset

    def _read(self, step: int) -> StepRecord:
        if step >= self.steps:
            raise ConfigError(f"{self._log.path} records {self.steps} steps, so there is no step {step} to replay.")
        if step < self._read_to:
            self._read_to = 0
        if self._read_to == 0:
            self._records = read_records(self._log.path)
        for record in self._records:
            self._read_to += 1
            if record.step == step:
                return record
        raise ConfigError(f"{self._log.path} has no line of step {step}; it is not the record of one run.")


def _recorded_coreset(facts: PoolFacts, record: StepRecord) -> Coreset:
    position = {
        (source, index): p for p, (source, index) in enumerate(zip(facts.source, facts.dataset_index, strict=True))
    }
    rows = [(source, index) for source, kept in record.kept.items() for index in kept]
    weights = [1.0 / len(rows)] * len(rows)
    if record.weights is not None:
        weights = [weight for source in record.kept for weight in record.weights[source]]
    weight_at = dict(zip((position[row] for row in rows), weights, strict=True))
    kept = sorted((weight_at | dict.fromkeys(fillers(weight_at, facts), 0.0)).items())
    return Coreset(torch.tensor([p for p, _ in kept]), torch.tensor([weight for _, weight in kept]))


def _difference(pool: Mapping[str, list[int]], recorded: Mapping[str, list[int]]) -> str:
    ours = {(source, index) for source, rows in pool.items() for index in rows}
    theirs = {(source, index) for source, rows in recorded.items() for index in rows}
    for found, where in ((sorted(ours - theirs), "only here"), (sorted(theirs - ours), "only in the record")):
        if found:
            source, index = found[0]
            return f"row {index} of {source!r} is {where}"
    return "rows are there more than once"
