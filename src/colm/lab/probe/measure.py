"""A probe: a short training, at whose stages pools are looked at, and steps timed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from colm.config import SelectionConfig
from colm.errors import ConfigError, UnsupportedModelError
from colm.lab.probe.advice import BALANCED, Advice, Rule, advise
from colm.lab.probe.noise import NoiseEstimate, estimate_noise
from colm.lab.probe.workbench import Timing, Workbench
from colm.lab.probe.worth import Estimate, PoolGradients, judge_choices, judge_order
from colm.ordering import deal_balanced
from colm.token_features import token_features

logger = logging.getLogger(__name__)

WINDOW = 4
"""Pools, or steps, whose mean error is judged: what repeats in each of them does not average out."""

REPEATS = 3
"""Times that a step of each size is timed."""

PRESETS = ("control", "colm", "matched")


class Wanted(NamedTuple):
    """What a probe measures."""

    stages: tuple[int, ...]  # optimizer steps before each look
    pools: int  # of each stage
    batches: tuple[int, ...]  # rows of the steps to time


class Probe(NamedTuple):
    """What a probe found."""

    timings: dict[int, Timing]  # rows of a step -> its time
    noise: dict[int, NoiseEstimate | None]  # stage -> noise scale
    rules: list[Rule]  # worth of each rule, on average over stages
    by_stage: dict[str, dict[int, Estimate | None]]  # rule -> stage -> worth
    advice: Advice

    @property
    def seconds(self) -> dict[int, float]:
        """Rows of a step -> its seconds."""
        return {rows: timing.seconds for rows, timing in self.timings.items()}


def run_probe(bench: Workbench, wanted: Wanted, told: Callable[[int, int], None]) -> Probe:
    """Train up to each stage and look at its pools.

    Args:
        bench: the run's model and rows.
        wanted: what to measure.
        told: is called with the parts that are done, and all.

    Raises:
        ConfigError: the data has too few rows.
    """
    needed = wanted.pools * bench.pool
    if len(bench.rows) < 2 * needed:
        raise ConfigError(
            f"--pools {wanted.pools}: {wanted.pools} pools of {bench.pool} rows need {2 * needed:,} rows of training "
            f"data, but there are {len(bench.rows):,}; lower it, or the pool."
        )
    total, done = 1 + len(wanted.stages) * (2 + len(PRESETS)), 0

    def tell() -> None:
        nonlocal done
        done += 1
        told(done, total)

    draw = np.random.default_rng(bench.seed)
    timed = draw.choice(len(bench.rows), max(wanted.batches), replace=len(bench.rows) < max(wanted.batches)).tolist()
    timings = bench.time_steps(wanted.batches, timed, REPEATS)
    seconds = {rows: timing.seconds for rows, timing in timings.items()}
    tell()
    features = token_features(bench.rows)
    configs = {name: as_rule(name, bench.selection) for name in PRESETS}
    chosen = bench.batches()
    noise: dict[int, NoiseEstimate | None] = {}
    worths: dict[str, dict[int, Estimate | None]] = {name: {} for name in (BALANCED, *configs)}
    costs: dict[str, list[float]] = {name: [] for name in worths}
    trained = 0
    for stage in wanted.stages:
        bench.train(chosen, stage - trained)
        trained = stage
        tell()
        drawn = draw.choice(len(bench.rows), needed, False)
        pools = drawn.reshape(wanted.pools, bench.pool)
        gradients = [
            PoolGradients(bench.gradients(pool.tolist()), np.array([bench.sources[r] in bench.small for r in pool]))
            for pool in pools
        ]
        noise[stage] = estimate_noise(gradients, bench.kept)
        tell()
        rows = np.concatenate([pool.rows for pool in gradients])
        steps = len(rows) // bench.kept
        order = deal_balanced(features[drawn[: steps * bench.kept]], [bench.kept] * steps)
        worths[BALANCED][stage] = judge_order(rows[: steps * bench.kept], order, bench.kept, WINDOW)
        for name, config in list(configs.items()):
            try:
                choices, spent = bench.choose(config, pools.tolist())
            except UnsupportedModelError as error:
                logger.info("%s is left out: %s", name, error)
                del configs[name]
                continue
            worths[name][stage] = judge_choices(gradients, choices, WINDOW)
            costs[name].append(spent if config.features != "none" else 0.0)
            tell()
    rules = []
    for name, by_stage in worths.items():
        worth = average([each for each in by_stage.values() if each is not None])
        if worth is not None:
            cost = float(np.mean(costs[name] or [0.0]))
            rules.append(Rule(name, bench.kept, bench.kept if name == BALANCED else bench.pool, worth, cost))
    last = noise[wanted.stages[-1]]
    advice = advise(seconds, None if last is None else last.rows, rules, bench.kept)
    return Probe(timings, noise, rules, worths, advice)


def as_rule(preset: str, selection: SelectionConfig) -> SelectionConfig:
    """Return a preset with a run's rule for small sources and its number of kept rows."""
    config = SelectionConfig.from_dict({"preset": preset})
    kept = ("keep", "keep_count", "keep_schedule", "small_sources", "value_module", "seed", "pass_tokens", "pass_dtype")
    return replace(config, noise_every=0, **{name: getattr(selection, name) for name in kept})


def average(estimates: Sequence[Estimate]) -> Estimate | None:
    """Return the mean of independent estimates, with its standard error."""
    if not estimates:
        return None
    known = [each.error for each in estimates if each.error is not None]
    error = float(np.sqrt(np.sum(np.square(known))) / len(estimates)) if len(known) == len(estimates) else None
    return Estimate(float(np.mean([each.value for each in estimates])), error, sum(each.freedom for each in estimates))
