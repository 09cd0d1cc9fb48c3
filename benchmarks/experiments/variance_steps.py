"""How far the kept rows' mean gradient over many steps is from that of all rows of their pools."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from variance_gather import PoolRows

from colm.select.direction import match_direction
from colm.select.facility import facility_location
from colm.select.quota import source_quotas
from colm.select.sampling import sample_by_size
from colm.select.weighting import fit_weights

ORDERS = 5

Carried = Tensor | None
Step = Callable[[PoolRows, int, torch.Generator, Carried], tuple[Tensor, Tensor, Carried]]
"""Takes a pool, a budget, a generator and the residual; returns rows, weights that sum to about 1, the residual."""


class OverSteps(NamedTuple):
    """One rule over all pools in turn, at fixed model weights."""

    error: (
        float  # squared distance to the mean of all rows after the best scaling, relative to that mean's squared length
    )
    rows: float  # number of random rows per pool that give this error


def even(rows: Tensor) -> Tensor:
    return torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)


def by_source(pool: PoolRows, budget: int, pick: Callable[[Tensor, int], Tensor]) -> Tensor:
    counts = {name: pool.sources.count(name) for name in sorted(set(pool.sources))}
    quotas = source_quotas(counts, budget)
    groups = {name: torch.tensor([i for i, s in enumerate(pool.sources) if s == name]) for name in counts}
    return torch.cat([rows[pick(rows, quotas[name])] for name, rows in groups.items()])


def at_random(pool: PoolRows, budget: int, draw: torch.Generator, carried: Carried) -> tuple[Tensor, Tensor, Carried]:
    rows = torch.randperm(len(pool.sources), generator=draw)[:budget]
    return rows, even(rows), None


def control(pool: PoolRows, budget: int, draw: torch.Generator, carried: Carried) -> tuple[Tensor, Tensor, Carried]:
    rows = by_source(pool, budget, lambda held, quota: torch.randperm(len(held), generator=draw)[:quota])
    return rows, even(rows), None


def paper(pool: PoolRows, budget: int, draw: torch.Generator, carried: Carried) -> tuple[Tensor, Tensor, Carried]:
    rows = by_source(pool, budget, lambda held, quota: facility_location(pool.largest[held], quota, "l1"))
    return rows, even(rows), None


def medoids(pool: PoolRows, budget: int, draw: torch.Generator, carried: Carried) -> tuple[Tensor, Tensor, Carried]:
    rows = by_source(pool, budget, lambda held, quota: facility_location(pool.last[held], quota, "l2"))
    return rows, even(rows), None


def sample(pool: PoolRows, budget: int, draw: torch.Generator, carried: Carried) -> tuple[Tensor, Tensor, Carried]:
    rows, chances = sample_by_size(pool.norms, budget, draw)
    return rows, 1 / chances[rows] / len(pool.sources), None


def matched(carry: float, *, weighted: bool = True, scaled: bool = False) -> Step:
    def step(pool: PoolRows, budget: int, draw: torch.Generator, carried: Carried) -> tuple[Tensor, Tensor, Carried]:
        held = pool.scaled if scaled else pool.last
        goal = budget * held.mean(0) + (0.0 if carried is None else carried)
        rows = match_direction(held, budget, goal)
        weights = fit_weights(held[rows], goal) if weighted else torch.ones(budget, dtype=torch.float64)
        return rows, weights / budget, carry * (goal - weights.float() @ held[rows])

    return step


RULES: dict[str, Step] = {
    "random": at_random,
    "control (random by source)": control,
    "medoids of Adam steps (the paper)": paper,
    "medoids of last-V gradients, l2": medoids,
    "sampled by last-V norm, weighted (unbiased)": sample,
    "direction": matched(0.0, weighted=False),
    "direction, carried 0.95": matched(0.95, weighted=False),
    "direction, fitted weights": matched(0.0),
    "direction, fitted weights, carried 0.8": matched(0.8),
    "direction, fitted weights, carried 0.95 (matched)": matched(0.95),
    "direction, fitted weights, carried 1": matched(1.0),
    "direction, fitted weights, carried 0.95, in Adam's metric": matched(0.95, scaled=True),
}


def judge_steps(rules: dict[str, Step], pools: list[PoolRows], budget: int) -> dict[str, OverSteps]:
    """Apply each rule to all pools in several orders, and judge its mean over them.

    With n rows in a pool, the error of k random rows is proportional to 1 / k - 1 / n; that gives *rows*.
    """
    whole = torch.stack([pool.full.mean(0) for pool in pools]).mean(0)
    errors = {}
    for name, step in rules.items():
        found = []
        for number in range(ORDERS):
            draw = torch.Generator().manual_seed(number)
            carried, total = None, torch.zeros_like(whole)
            for place in torch.randperm(len(pools), generator=draw).tolist():
                rows, weights, carried = step(pools[place], budget, draw, carried)
                total += weights.float() @ pools[place].full[rows]
            scale = (total @ whole) / whole.square().sum()
            found.append((total / scale - whole).square().sum() / whole.square().sum())
        errors[name] = float(torch.stack(found).mean())
    size = len(pools[0].sources)
    unit = errors["random"] / (1 / budget - 1 / size)
    return {name: OverSteps(error, 1 / (1 / size + error / unit)) for name, error in errors.items()}
