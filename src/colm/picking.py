"""From the features of the big sources' rows to the rows that stand for them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from colm.features.adam import AdamConstants, fold_in, to_adam_steps
from colm.features.factors import blocks
from colm.features.sketch import Sketch, draw_sketch
from colm.features.sparsify import largest_coordinates
from colm.select.baselines import random_rows
from colm.select.fitting import fit_weights
from colm.select.rules import Picked, PickRule, pick_rows
from colm.step.pool_info import PoolFacts
from colm.step.ranks import gather_rows, sum_over_ranks
from colm.step.transfer import row_numbers, send
from colm.types import AdamHistory, Features

logger = logging.getLogger(__name__)


class Picks(NamedTuple):
    """The picks of one step, in positions of the global pool."""

    positions: list[int]
    stands_for: list[float]  # how many rows each pick stands for; with fitted weights these
    history: AdamHistory | None  # what the history becomes if the step is committed; None: unchanged
    nonfinite: list[int]  # rows that were not eligible
    carried: Tensor | None  # what the next goal becomes longer by if the step is committed; None: unchanged
    match: float | None  # cosine of the picks' mean normalised feature with that of all rows; None without a pick
    match_random: float | None  # what as many rows of each group, drawn at random, would have


NO_PICKS = Picks([], [], None, [], None, None, None)


def pick_at_random(
    rows: list[int], budget: int, facts: PoolFacts, rule: PickRule, generator: torch.Generator
) -> dict[int, float]:
    """Draw rows at random, each group its quota, and return how many rows each of them stands for.

    Args:
        rows: positions in the global pool, in the order of the data set.
        budget: rows to draw, at most len(rows).
        facts: of the pool.
        rule: how rows are grouped.
        generator: the same on every rank.
    """
    groups = rule.group(rows, facts)
    quotas = rule.quotas(groups, budget)
    return {
        held[i]: len(held) / quotas[name]
        for name, held in groups.items()
        for i in random_rows(len(held), quotas[name], generator).tolist()
    }


def pick_from_features(
    features: Features,
    big: list[int],
    budget: int,
    facts: PoolFacts,
    history: AdamHistory,
    constants: AdamConstants | None,
    rule: PickRule,
    generator: torch.Generator | None = None,
    *,
    carried: Tensor | None = None,
    importance: Mapping[int, float] | None = None,
) -> Picks:
    """Pick rows group by group, in proportion to the groups' shares. A group is a source, as a rule.

    Args:
        features: of this rank's rows among `big`, in the order of their positions.
        big: candidate rows of all ranks, in the order of the data set.
        budget: rows to pick, at most len(big).
        facts: of the pool.
        history: of the kept big-source rows so far.
        constants: Adam's, or None to take the features as they are.
        rule: how to pick within a group.
        generator: for rules that draw; the same on every rank.
        carried: (h,), what earlier picks lacked; None for nothing.
        importance: how much each row of `big` counts; None for 1. Rows are picked and fitted as what they count.
    """
    positions = sorted(big)
    row_of = {p: i for i, p in enumerate(p for p in positions if facts.is_local(p))}
    finite = torch.cat(gather_rows(features.finite().long())).tolist()
    broken = {p for p, is_finite in zip(positions, finite, strict=True) if not is_finite}
    if broken:
        logger.warning("%d of %d rows have features that are not finite and are not picked.", len(broken), len(big))
    groups = rule.group([p for p in big if p not in broken], facts)
    quotas = rule.quotas(groups, budget)
    chosen_of: list[tuple[list[int], Picked]] = []  # each group's positions and picks
    match = _Match(features.dim, features.device)
    sketch = draw_sketch(features.dim, rule.coordinates, features.device) if rule.shorten == "sketch" else None
    kept_rows: list[Tensor] = []  # (quota, h) of each group
    mean = torch.zeros((), device=features.device)  # of all rows, (h,)
    for name, rows in groups.items():
        arriving = sorted(rows)  # the order in which ranks send them
        held = torch.tensor([row_of[p] for p in arriving if p in row_of], dtype=torch.int64)
        summary = _summarise(features, held, len(rows), history, constants, rule.coordinates, sketch)
        match.add(summary, quotas[name])
        sparse = torch.cat(gather_rows(summary.sparse))
        place = {p: i for i, p in enumerate(arriving)}
        sparse = sparse[row_numbers([place[p] for p in rows], sparse.device)]
        if importance is not None:
            sparse = sparse * send(torch.tensor([importance[p] for p in rows]), sparse.device)[:, None]
        goal = None if carried is None else quotas[name] * sparse.mean(0) + carried
        chosen = pick_rows(sparse, quotas[name], rule, generator, goal)
        if rule.shorten == "sketch":  # coordinates that all groups share
            kept_rows.append(sparse[chosen.rows])
            mean = mean + sparse.sum(0) / sum(map(len, groups.values()))
        chosen_of.append((rows, chosen))
    picks, stands_for = _read(chosen_of)
    if not picks:
        return NO_PICKS._replace(nonfinite=sorted(broken))
    left_over = None
    if rule.shorten == "sketch":
        goal = len(picks) * mean + (0.0 if carried is None else carried)
        weights, left_over = _balance(torch.cat(kept_rows), goal, rule)
        if rule.weights == "fitted":
            stands_for = weights.tolist()
    held = torch.tensor(sorted(row_of[p] for p in picks if p in row_of), dtype=torch.int64)
    total, following = _sum_picks(features, held, len(picks), history, constants)
    return Picks(picks, stands_for, following, sorted(broken), left_over, *match.cosines(total))


def _read(chosen_of: list[tuple[list[int], Picked]]) -> tuple[list[int], list[float]]:
    """Return the picks' positions, and how many rows each stands for, with one host transfer for all groups."""
    if not chosen_of:
        return [], []
    numbers, stands_for = torch.cat(
        [torch.stack([chosen.rows.double(), chosen.stands_for.double()]) for _, chosen in chosen_of], 1
    ).tolist()
    group = [rows for rows, chosen in chosen_of for _ in range(len(chosen.rows))]
    return [rows[int(number)] for rows, number in zip(group, numbers, strict=True)], stands_for


def _balance(kept: Tensor, goal: Tensor, rule: PickRule) -> tuple[Tensor, Tensor | None]:
    """Return the weights (k,) of the kept rows' sketches (k, h), and the part of the goal (h,) for the next step."""
    weights = fit_weights(kept, goal) if rule.weights == "fitted" else kept.new_ones(len(kept))
    return weights, rule.carry * (goal - weights.to(kept) @ kept) if rule.carry else None


class _Group(NamedTuple):
    """What is known of a group's normalised features u without holding them."""

    sparse: Tensor  # (rows on this rank, h) float32
    total: Tensor  # (D,), sum of u over all ranks
    squares: Tensor  # (), sum of |u|^2 over all ranks
    rows: int  # over all ranks


class _Match:
    """How well the picks' mean feature points to that of all rows, and how well random rows would.

    The random rows are as many of each group, without replacement. Their mean has expectation
    e = sum_g (k_g / k) mean_g and variance sum_g (k_g / k)^2 (1 / k_g - 1 / n_g) s_g^2, with s_g^2 the group's
    variance; its cosine with the pool's mean p is taken as p.e / (|p| (|e|^2 + variance)^(1/2)).
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self._pool = torch.zeros(dim, device=device)
        self._expected = torch.zeros(dim, device=device)
        self._variance = torch.zeros((), device=device)
        self._picked = 0

    def add(self, group: _Group, quota: int) -> None:
        """Take a group of which `quota` rows are picked."""
        n, k = group.rows, quota
        self._pool += group.total
        if k == 0:
            return
        self._picked += k
        self._expected += k / n * group.total
        if n > 1:
            spread = (group.squares - group.total.square().sum() / n).clamp_min(0) / (n - 1)
            self._variance += k * (1 - k / n) * spread

    def cosines(self, picked: Tensor) -> tuple[float | None, float | None]:
        """Return the cosine of the picks' sum (D,) with the pool's, and that of random rows; None where it is 0/0."""
        along = torch.stack([self._pool @ picked, self._pool @ self._expected])
        squares = torch.stack([picked.square().sum(), self._expected.square().sum() + self._variance])
        match, random = (along / (squares * self._pool.square().sum()).sqrt()).tolist()  # one host transfer
        return (match if match == match else None), (random if random == random else None)


def _summarise(
    features: Features,
    held: Tensor,
    rows: int,
    history: AdamHistory,
    constants: AdamConstants | None,
    coordinates: int,
    sketch: Sketch | None,
) -> _Group:
    """Take one group's rows at its h coordinates, or their sketches, (len(held), h) float32; sums are over all D."""

    total = torch.zeros(features.dim, device=features.device)
    squares = torch.zeros((), device=features.device)
    parts: list[Tensor] = []
    for chunk in blocks(held, features.dim, features.device):
        block = _normalise(features.rows(chunk), history, constants)
        total += block.sum(0)
        squares += torch.dot(block.flatten(), block.flatten())
        if sketch is not None:
            parts.append(sketch.apply(block))
    total = sum_over_ranks(total)
    width = sketch.size if sketch is not None else min(coordinates, features.dim)
    if sketch is None and len(held):
        columns = largest_coordinates(total / rows, coordinates)
        narrow = AdamHistory(history.m[columns], history.v[columns], history.updates)
        parts = [_normalise(features.columns(held, columns), narrow, constants)]
    sparse = torch.cat(parts) if parts else total.new_zeros(0, width)
    return _Group(sparse, total, sum_over_ranks(squares), rows)


def _normalise(gradients: Tensor, history: AdamHistory, constants: AdamConstants | None) -> Tensor:
    """Normalise gradients (k, D) in their place, if they are to be."""
    return gradients if constants is None else to_adam_steps(gradients, history, constants)


def _sum_picks(
    features: Features, held: Tensor, picked: int, history: AdamHistory, constants: AdamConstants | None
) -> tuple[Tensor, AdamHistory | None]:
    """Return the sum of the picks' normalised features (D,) over all ranks, and the history with them.

    The history becomes the mean of the picked rows' moments, as in the paper's code.
    """
    total = torch.zeros(features.dim, device=features.device)
    gradients, squares = (total.clone(), total.clone()) if constants is not None else (total, total)
    for chunk in blocks(held, features.dim, features.device):
        block = features.rows(chunk)
        if constants is not None:
            gradients += block.sum(0)
            squares += block.square().sum(0)
        total += _normalise(block, history, constants).sum(0)
    total = sum_over_ranks(total)
    if constants is None:
        return total, None
    mean, mean_square = sum_over_ranks(gradients) / picked, sum_over_ranks(squares) / picked
    return total, fold_in(mean, mean_square, history, constants)
