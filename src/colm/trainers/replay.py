"""Train on recorded choices again: a chooser that reads `selection.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from colm.choosing import Chosen, Step
from colm.errors import ConfigError, DataError
from colm.step.pool_info import PoolFacts, fillers, index_by_source
from colm.step.record import StepLog, read_records
from colm.types import Coreset, StepRecord


class Replayed:
    """Chooses the rows that a run kept, with the weights that they had; there is no selection pass.

    Args:
        record: the run's ``selection.jsonl``.

    Attributes:
        steps: how many the record holds.

    Raises:
        ConfigError: there is no record, or it holds no step.
        DataError: a line of it is damaged, or the last one is not whole.
    """

    def __init__(self, record: Path) -> None:
        self._log = StepLog(record)
        self.steps = sum(1 for _ in self._log.read(whole=True))
        if self.steps == 0:
            raise ConfigError(f"{record} holds no step to replay; give the selection.jsonl of a run.")
        self._records: Iterator[StepRecord] = iter(())
        self._read_to = 0

    def choose(self, step: Step) -> Chosen:
        """Return the recorded coreset of this step.

        Raises:
            DataError: the pool is not the recorded one, so seed, data or batch size differ; or its rows share numbers.
            ConfigError: the record has no such step.
        """
        then = self._read(step.number)
        pool = index_by_source(step.facts.recorded, step.facts)
        if pool != then.pool:
            raise DataError(
                f"The pool of step {step.number} is not the recorded one: {_difference(pool, then.pool)}. "
                "Replay with the data, seed, batch size and number of ranks of the run."
            )
        coreset = _recorded_coreset(step.facts, then)
        return Chosen(coreset, then.nonfinite, then.match, then.match_random)

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
    position = {(facts.source[p], facts.dataset_index[p]): p for p in facts.recorded}
    if len(position) < len(facts.recorded):  # as of a stream that several workers read, each from 0
        raise DataError(
            f"Rows of step {record.step} share a number, so the record does not tell which of them were kept. Replay "
            "runs of streams that were read in one process (dataloader_num_workers of 0 or 1)."
        )
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
