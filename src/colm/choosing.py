"""Ways to choose a step's rows: at random, and by the features of a selection pass.

A third way, `colm.trainers.replay.Replayed`, reads the choices of an earlier run, and a fourth,
`colm.trainers.ordered.Dealt`, those that were made for the whole pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from colm import config_parts
from colm.config import SelectionConfig
from colm.features.adam import AdamConstants, empty_history
from colm.features.selection_pass import GRADIENTS, run_selection_pass
from colm.features.site import ValueSite
from colm.picking import NO_PICKS, Candidates, Picks, Scale, pick_at_random, pick_from_features
from colm.select.weighting import weigh_picks
from colm.step.pool import Pool
from colm.step.pool_info import PoolFacts, fillers, group_by_source, index_by_source
from colm.step.stages import PASS, PICK, stage
from colm.step.state import SelectionState
from colm.types import AdamHistory, Coreset, StepRecord

SEED_STRIDE = 1_000_003
"""Number of steps over which two seeds share no draw."""


@dataclass(frozen=True)
class Step:
    """What a step chooses from, and how much of it."""

    number: int  # optimizer steps before this one
    pool: Pool | None  # this rank's rows; None if only the sources are known, as in a sampler
    facts: PoolFacts  # of all ranks' rows
    config: SelectionConfig
    small_sources: frozenset[str]
    balance: Mapping[str, float]  # how much a row of each source counts; empty where all count 1

    @cached_property
    def budget(self) -> int:
        """K, the rows to keep."""
        return self.config.kept_rows(len(self.facts.learnable), self.facts.slots, step=self.number)

    @cached_property
    def small(self) -> list[int]:
        """Learnable rows of small sources, in the order of the data set."""
        return [p for p in self.facts.learnable if self.facts.source[p] in self.small_sources]

    @cached_property
    def big(self) -> list[int]:
        """Learnable rows of large sources, in the order of the data set."""
        return [p for p in self.facts.learnable if self.facts.source[p] not in self.small_sources]

    def candidates(self, rows: list[int], budget: int) -> Candidates:
        """Return `rows` as candidates, with this step's draws."""
        importance = {p: self.importance(p) for p in rows} if self.balance else None
        return Candidates(rows, budget, self.facts, self.number, self.generator(self.number, stream=0), importance)

    def generator(self, step: int, *, stream: int) -> torch.Generator:
        """Return a generator of the selection's own, the same on every rank and after a resume."""
        return torch.Generator().manual_seed(2 * (self.config.seed * SEED_STRIDE + step) + stream)

    def importance(self, position: int) -> float:
        """Return how much a row counts next to others of its kind, by its source."""
        return self.balance.get(self.facts.source[position], 1.0)


class Chosen(NamedTuple):
    """The rows of a step, with what to record and what to remember of the choice."""

    coreset: Coreset
    nonfinite: int = 0  # rows that were not eligible
    match: float | None = None
    match_random: float | None = None
    history: AdamHistory | None = None  # the history if the step is committed; None: unchanged
    carried: Tensor | None = None  # the same for the residual

    def record(self, step: Step, seconds: float) -> StepRecord:
        """Return the record of the step, without its noise scale; `seconds` is how long the choice took."""
        facts = step.facts
        weight = dict(zip(self.coreset.indices.tolist(), self.coreset.weights.tolist(), strict=True))
        kept = [p for p in facts.recorded if p in weight]
        by_source = group_by_source(kept, facts)
        weighs = step.config.weighs
        return StepRecord(
            step=step.number,
            pool=index_by_source(facts.recorded, facts),
            kept=index_by_source(kept, facts),
            tokens={name: sum(facts.tokens[p] for p in rows) for name, rows in by_source.items()},
            small_kept=sum(facts.source[p] in step.small_sources for p in kept),
            unlabelled=sum(facts.labelled[p] == 0 for p in facts.recorded),
            nonfinite=self.nonfinite,
            seconds=seconds,
            match=self.match,
            match_random=self.match_random,
            weights={name: [weight[p] for p in rows] for name, rows in by_source.items()} if weighs else None,
        )


class Chooser(Protocol):
    """A way to choose a step's rows."""

    def choose(self, step: Step) -> Chosen:
        """Return the rows of a step, the same on every rank."""
        ...


def keep_rows(step: Step, counts: Mapping[int, float]) -> Chosen:
    """Keep the rows that are known to be kept, with how many rows each stands for; no micro-batch stays empty."""
    return Chosen(_weigh(step, dict(counts) | dict.fromkeys(fillers(counts, step.facts), 1.0)))


class AtRandom:
    """Small sources' rows whole and big ones' at random; a sample of the small ones if they overflow the budget."""

    def choose(self, step: Step) -> Chosen:
        """Draw with the step's own generator; a pool of fewer rows than micro-batches is filled up."""
        return keep_rows(step, self.draw(step))

    def draw(self, step: Step) -> dict[int, float]:
        """Return how many rows of the pool each kept row stands for."""
        by_source, left = step.config.by_source, step.budget - len(step.small)
        if left < 0:
            return pick_at_random(step.candidates(step.small, step.budget), by_source=by_source)
        return dict.fromkeys(step.small, 1.0) | pick_at_random(step.candidates(step.big, left), by_source=by_source)


@dataclass(frozen=True)
class ByFeatures:
    """Small sources' rows whole, and those of big ones that stand for the others by their features."""

    model: nn.Module
    site: ValueSite
    wanted: config_parts.Features
    constants: AdamConstants | None  # None: features stay as they are
    state: SelectionState  # of earlier steps
    recording: Callable[[list[list[int]]], AbstractContextManager[None]] | None = None

    def choose(self, step: Step) -> Chosen:
        """Run the selection pass over the large sources' rows and pick among them."""
        picks = self._pick(step)
        counts = dict.fromkeys(step.small, 1.0) | dict(zip(picks.positions, picks.stands_for, strict=True))
        needed = max(0, step.facts.slots - len(counts))  # no micro-batch may be empty
        coreset = _weigh(step, counts | dict.fromkeys(picks.nonfinite[:needed], 1.0), picks)
        return Chosen(coreset, len(picks.nonfinite), picks.match, picks.match_random, picks.history, picks.carried)

    def _pick(self, step: Step) -> Picks:
        config, facts = step.config, step.facts
        assert step.pool is not None
        local = [p - facts.first for p in step.big if facts.is_local(p)]
        fixed = self.wanted.spsa is not None and self.wanted.spsa.fixed
        directions = step.generator(0 if fixed else step.number, stream=1)
        with stage(PASS):
            features = run_selection_pass(
                self.model,
                self.site,
                step.pool,
                local,
                self.wanted,
                config.selection_pass,
                generator=directions,
                recording=self.recording,
            )
        self.state.move_to(features.device)
        scale = Scale(self.state.history or empty_history(features.dim, features.device), self.constants)
        pick = config.picking
        if self.wanted.kind not in GRADIENTS:
            pick = replace(pick, coordinates=features.dim)
        candidates = step.candidates(step.big, step.budget - len(step.small))
        with stage(PICK), torch.autocast(features.device.type, enabled=False):  # the caller's is for the model alone
            return pick_from_features(features, candidates, pick, scale, self.state.carried)


def _weigh(step: Step, counts: Mapping[int, float], picks: Picks = NO_PICKS) -> Coreset:
    """Turn how many rows each kept row stands for into its weight in the loss; rows that have no loss weigh nothing."""
    kept = sorted(counts)
    rows = [p for p in kept if step.facts.labelled[p] > 0]  # the others only fill micro-batches
    stands_for = torch.tensor([counts[p] for p in rows])
    of_big = torch.tensor([step.facts.source[p] not in step.small_sources for p in rows], dtype=torch.bool)
    kind = step.config.weights
    if kind == "fitted" and not picks.positions:  # rows at random have nothing to be fitted by
        kind = "relative"
    weights = weigh_picks(stands_for, of_big, len(step.facts.learnable), kind)
    weights = weights * torch.tensor([step.importance(p) for p in rows])
    weight_of = dict(zip(rows, weights.tolist(), strict=True))
    return Coreset(torch.tensor(kept), torch.tensor([weight_of.get(p, 0.0) for p in kept]))
