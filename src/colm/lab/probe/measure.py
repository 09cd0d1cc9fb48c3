"""A probe: a short training, at whose stages pools are looked at, and steps timed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from colm.config import SelectionConfig
from colm.errors import ConfigError, UnsupportedModelError
from colm.lab.probe.advice import BALANCED, Advice, Rule, advise
from colm.lab.probe.cuts import WINDOW, Cut, check_pools, check_room, default_cuts
from colm.lab.probe.noise import estimate_noise
from colm.lab.probe.workbench import Timing, Workbench
from colm.lab.probe.worth import Estimate, PoolGradients, average, judge_choices, judge_order
from colm.ordering import deal_balanced
from colm.token_features import token_features

logger = logging.getLogger(__name__)

REPEATS = 3
"""Times that a step of each size is timed."""

PRESETS = ("control", "colm", "matched")


class Wanted(NamedTuple):
    """What a probe measures."""

    stages: tuple[int, ...]  # optimizer steps before each look
    pools: int  # of each stage, as configured
    batches: tuple[int, ...]  # rows of the steps to time, those of the cuts and the configured ones besides
    cuts: tuple[Cut, ...] = ()  # K of N to judge; empty: see `default_cuts`


class Probe(NamedTuple):
    """What a probe found."""

    kept: int  # rows of a step as configured
    timings: dict[int, Timing]  # rows of a step -> its time
    noise: dict[int, Estimate | None]  # stage -> noise scale
    rules: list[Rule]  # with the worth of each, on average over stages

    @property
    def seconds(self) -> dict[int, float]:
        """Rows of a step -> its seconds."""
        return {rows: timing.seconds for rows, timing in self.timings.items()}

    @property
    def scale(self) -> Estimate | None:
        """The noise scale in rows after the last stage; None if it is not clear."""
        last = list(self.noise.values())[-1]
        return None if last is None else last._replace(value=max(0.0, last.value))

    @property
    def advice(self) -> Advice:
        """What to train with."""
        return advise(self.seconds, self.scale, self.rules, self.kept)


class _Judged(NamedTuple):
    """What one rule is worth in one stage."""

    worth: Estimate | None
    seconds: float  # of a choice


class _Key(NamedTuple):
    """One rule at one K of N."""

    name: str
    kept: int
    pool: int


class _Look(NamedTuple):
    """Rows that a stage looks at, and their gradients."""

    drawn: np.ndarray  # (M,) int64, row numbers in a random order
    small: np.ndarray  # (M,) bool: rows of small sources
    rows: np.ndarray  # (M, d) float64, their gradients

    def pools(self, cut: Cut) -> list[PoolGradients]:
        """Return the rows as pools of that cut."""
        return [PoolGradients(*pool) for pool in zip(cut.pools(self.rows), cut.pools(self.small), strict=True)]


def run_probe(bench: Workbench, wanted: Wanted, told: Callable[[int, int], None]) -> Probe:
    """Train up to each stage and look at its pools.

    Args:
        bench: the run's model and rows.
        wanted: what to measure.
        told: is called with the parts that are done, and all.

    Raises:
        ConfigError: the data has too few rows, a batch has more, or a cut cannot be judged on them.
    """
    configured = Cut(bench.kept, bench.pool)
    needed = wanted.pools * configured.pool
    if len(bench.rows) < 2 * needed:
        raise ConfigError(
            f"--pools {wanted.pools}: {wanted.pools} pools of {bench.pool} rows need {2 * needed:,} rows of training "
            f"data, but there are {len(bench.rows):,}; lower it, or the pool."
        )
    most = max(wanted.batches, default=0)
    if most > len(bench.rows):
        raise ConfigError(f"--batches {most}: a step has 1 to {len(bench.rows):,} rows, those of the training data.")
    draw = np.random.default_rng(bench.seed)
    drawn = [draw.choice(len(bench.rows), needed, False) for _ in wanted.stages]
    small = [np.array([bench.sources[row] in bench.small for row in rows]) for rows in drawn]
    check_pools(wanted.cuts, needed)
    check_room(wanted.cuts, small)
    cuts = list(wanted.cuts) or default_cuts(configured, small)
    configs = {name: as_rule(name, bench.selection) for name in PRESETS}
    total, done = 1 + len(wanted.stages) * (2 + len(configs) * len(cuts)), 0

    def tell() -> None:
        nonlocal done
        done += 1
        told(done, total)

    sizes = sorted({*wanted.batches, bench.kept, *(cut.kept for cut in cuts)})
    timed = draw.choice(len(bench.rows), sizes[-1], replace=False).tolist()
    timings = bench.time_steps(sizes, timed, REPEATS)
    tell()
    features = token_features(bench.rows)
    chosen = bench.batches()
    noise: dict[int, Estimate | None] = {}
    judged: dict[int, dict[_Key, _Judged]] = {}
    trained = 0
    for stage, rows, flags in zip(wanted.stages, drawn, small, strict=True):
        bench.train(chosen, stage - trained)
        trained = stage
        tell()
        look = _Look(rows, flags, bench.gradients(rows.tolist()))
        noise[stage] = estimate_noise(look.pools(configured), bench.kept)
        tell()
        judged[stage] = _judge_orders(look, features, sizes)
        for name, config in list(configs.items()):
            try:
                for cut in cuts:
                    judged[stage][_Key(name, *cut)] = _judge_rule(bench, config, cut, look)
                    tell()
            except UnsupportedModelError as error:
                logger.info("%s is left out: %s", name, error)
                del configs[name]
    return Probe(bench.kept, timings, noise, _average_stages(judged))


def _judge_orders(look: _Look, features: np.ndarray, sizes: Sequence[int]) -> dict[_Key, _Judged]:
    """Judge the balanced order at every number of rows a step of which the rows make two windows; it costs nothing."""
    judged = {}
    for size in sizes:
        count = len(look.rows) // size * size
        if count >= 2 * WINDOW * size:
            order = deal_balanced(features[look.drawn[:count]], [size] * (count // size))
            judged[_Key(BALANCED, size, size)] = _Judged(judge_order(look.rows[:count], order, size, WINDOW), 0.0)
    return judged


def _judge_rule(bench: Workbench, config: SelectionConfig, cut: Cut, look: _Look) -> _Judged:
    """Let a rule choose from the pools of a cut, and judge and time its choices."""
    choices, spent = bench.choose(replace(config, keep=None, keep_count=cut.kept), cut.pools(look.drawn).tolist())
    return _Judged(judge_choices(look.pools(cut), choices, WINDOW), spent if config.features != "none" else 0.0)


def _average_stages(judged: Mapping[int, Mapping[_Key, _Judged]]) -> list[Rule]:
    """Return every rule that some stage can judge, with its mean worth and seconds."""
    rules = []
    for key in next(iter(judged.values())):
        stages = {stage: found[key] for stage, found in judged.items() if key in found}
        worth = average([each.worth for each in stages.values() if each.worth is not None])
        if worth is not None:
            seconds = float(np.mean([each.seconds for each in stages.values()]))
            rules.append(Rule(*key, worth, seconds, {stage: each.worth for stage, each in stages.items()}))
    return rules


def as_rule(preset: str, selection: SelectionConfig) -> SelectionConfig:
    """Return a preset with a run's rule for small sources."""
    config = SelectionConfig.from_dict({"preset": preset})
    kept = ("small_sources", "value_module", "seed", "pass_tokens", "pass_dtype")
    return replace(config, noise_every=0, **{name: getattr(selection, name) for name in kept})
