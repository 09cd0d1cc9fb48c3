"""From the features of the large sources' rows to the rows that represent them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from colm.config_parts import Pick
from colm.features.adam import AdamConstants, fold_in, to_adam_steps
from colm.features.factors import blocks
from colm.features.shorten import Sketch, draw_sketch, largest_coordinates
from colm.select.quota import source_quotas
from colm.select.rules import Picked, pick_rows
from colm.select.sampling import random_rows
from colm.select.weighting import fit_weights
from colm.step.pool_info import PoolFacts, group_by_source
from colm.step.ranks import gather_rows, sum_over_ranks
from colm.step.transfer import row_numbers, send
from colm.types import AdamHistory, Features

logger = logging.getLogger(__name__)


class Picks(NamedTuple):
    """The picks of one step, in positions of the global pool."""

    positions: list[int]
    stands_for: list[float]  # how many rows each pick stands for; with fitted weights these
    history: AdamHistory | None  # the history if the step is committed; None: unchanged
    nonfinite: list[int]  # rows that were not eligible
    carried: Tensor | None  # the residual if the step is committed; None: unchanged
    match: float | None  # cosine of the picks' mean normalized feature with that of all rows; None without a pick
    match_random: float | None  # the same for as many rows of each group, drawn at random


NO_PICKS = Picks([], [], None, [], None, None, None)


class Candidates(NamedTuple):
    """The rows that a step may pick from, and what decides ties."""

    rows: list[int]  # positions in the global pool, in the order of the data set
    budget: int  # rows to pick, at most as many
    facts: PoolFacts
    turn: int = 0  # the step, for ties between groups
    generator: torch.Generator | None = None  # for rules that draw; the same on every rank
    importance: Mapping[int, float] | None = None  # how much each row counts in picking and fitting; None for 1

    def groups(self, *, by_source: bool, without: Collection[int] = ()) -> list[_Group]:
        """Share the budget out over groups, in proportion to their rows: over sources, or all rows as one group."""
        rows = [p for p in self.rows if p not in without]
        groups = group_by_source(rows, self.facts) if by_source else {"all": rows} if rows else {}
        quotas = source_quotas(
            {name: len(held) for name, held in groups.items()}, min(self.budget, len(rows)), self.turn
        )
        return [_Group(held, quotas[name]) for name, held in groups.items()]


class _Group(NamedTuple):
    """Rows that are picked from together, and how many of them."""

    rows: list[int]
    quota: int


class Scale(NamedTuple):
    """How gradients become Adam's steps: with the history of the kept big-source rows so far."""

    history: AdamHistory
    constants: AdamConstants | None  # None: features stay as they are

    def apply(self, gradients: Tensor) -> Tensor:
        """Normalize gradients (k, D) in their place."""
        return gradients if self.constants is None else to_adam_steps(gradients, self.history, self.constants)

    def at(self, columns: Tensor) -> Scale:
        """Return the scale of these coordinates."""
        return Scale(
            AdamHistory(self.history.m[columns], self.history.v[columns], self.history.updates), self.constants
        )


def pick_at_random(candidates: Candidates, *, by_source: bool) -> dict[int, float]:
    """Draw rows at random, each group its quota, and return how many rows each of them stands for."""
    assert candidates.generator is not None
    return {
        rows[i]: len(rows) / quota
        for rows, quota in candidates.groups(by_source=by_source)
        for i in random_rows(len(rows), quota, candidates.generator).tolist()
    }


def pick_from_features(
    features: Features, candidates: Candidates, pick: Pick, scale: Scale, carried: Tensor | None = None
) -> Picks:
    """Pick rows from each group, normally a source, in proportion to its size.

    Args:
        features: of this rank's rows among the candidates, in the order of their positions.
        candidates: of all ranks.
        pick: how to pick within a group.
        scale: of the features.
        carried: (h,), the residual of earlier picks, or None.
    """
    facts, importance = candidates.facts, candidates.importance
    positions = sorted(candidates.rows)
    row_of = {p: i for i, p in enumerate(p for p in positions if facts.is_local(p))}
    finite = torch.cat(gather_rows(features.finite().long())).tolist()
    broken = {p for p, is_finite in zip(positions, finite, strict=True) if not is_finite}
    if broken:
        logger.warning(
            "%d of %d rows have features that are not finite and are not picked.", len(broken), len(positions)
        )
    groups = candidates.groups(by_source=pick.by_source, without=broken)
    chosen_of: list[tuple[list[int], Picked]] = []  # each group's positions and picks
    match = _Match(features.dim, features.device)
    sketch = draw_sketch(features.dim, pick.coordinates, features.device) if pick.shorten == "sketch" else None
    kept_rows: list[Tensor] = []  # (quota, h) of each group
    mean = torch.zeros((), device=features.device)  # of all rows, (h,)
    for rows, quota in groups:
        arriving = sorted(rows)  # the order in which ranks send them
        held = torch.tensor([row_of[p] for p in arriving if p in row_of], dtype=torch.int64)
        summary = _summarize(features, held, len(rows), scale, pick.coordinates if sketch is None else sketch)
        match.add(summary, quota)
        sparse = torch.cat(gather_rows(summary.sparse))
        place = {p: i for i, p in enumerate(arriving)}
        sparse = sparse[row_numbers([place[p] for p in rows], sparse.device)]
        if importance is not None:
            sparse = sparse * send(torch.tensor([importance[p] for p in rows]), sparse.device)[:, None]
        goal = None if carried is None else quota * sparse.mean(0) + carried
        chosen = pick_rows(sparse, quota, pick, candidates.generator, goal)
        if pick.shorten == "sketch":  # coordinates that all groups share
            kept_rows.append(sparse[chosen.rows])
            mean = mean + sparse.sum(0) / sum(len(group.rows) for group in groups)
        chosen_of.append((rows, chosen))
    picks, stands_for = _read(chosen_of)
    if not picks:
        return NO_PICKS._replace(nonfinite=sorted(broken))
    left_over = None
    if pick.shorten == "sketch":
        goal = len(picks) * mean + (0.0 if carried is None else carried)
        weights, left_over = _balance(torch.cat(kept_rows), goal, pick)
        if pick.weights == "fitted":
            stands_for = weights.tolist()
    held = torch.tensor(sorted(row_of[p] for p in picks if p in row_of), dtype=torch.int64)
    total, following = _sum_picks(features, held, len(picks), scale)
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


def _balance(kept: Tensor, goal: Tensor, pick: Pick) -> tuple[Tensor, Tensor | None]:
    """Return the weights (k,) of the kept rows' sketches (k, h), and the part of the goal (h,) for the next step."""
    weights = fit_weights(kept, goal) if pick.weights == "fitted" else kept.new_ones(len(kept))
    return weights, pick.carry * (goal - weights.to(kept) @ kept) if pick.carry else None


class _Summary(NamedTuple):
    """What is known of a group's normalized features u without holding them."""

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

    def add(self, group: _Summary, quota: int) -> None:
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


def _summarize(features: Features, held: Tensor, rows: int, scale: Scale, shorten: Sketch | int) -> _Summary:
    """Shorten one group's rows, (len(held), h) float32, to sketches or to so many coordinates; sums are over all D."""
    total = torch.zeros(features.dim, device=features.device)
    squares = torch.zeros((), device=features.device)
    parts: list[Tensor] = []
    for chunk in blocks(held, features.dim, features.device):
        block = scale.apply(features.rows(chunk))
        total += block.sum(0)
        squares += torch.dot(block.flatten(), block.flatten())
        if isinstance(shorten, Sketch):
            parts.append(shorten.apply(block))
    total = sum_over_ranks(total)
    if isinstance(shorten, Sketch):
        width = shorten.size
    else:
        width = min(shorten, features.dim)
        if len(held):
            columns = largest_coordinates(total / rows, shorten)
            parts = [scale.at(columns).apply(features.columns(held, columns))]
    sparse = torch.cat(parts) if parts else total.new_zeros(0, width)
    return _Summary(sparse, total, sum_over_ranks(squares), rows)


def _sum_picks(features: Features, held: Tensor, picked: int, scale: Scale) -> tuple[Tensor, AdamHistory | None]:
    """Return the sum of the picks' normalized features (D,) over all ranks, and the history with them.

    The history becomes the mean of the picked rows' moments, as in the paper's code.
    """
    history, constants = scale
    total = torch.zeros(features.dim, device=features.device)
    gradients, squares = (total.clone(), total.clone()) if constants is not None else (total, total)
    for chunk in blocks(held, features.dim, features.device):
        block = features.rows(chunk)
        if constants is not None:
            gradients += block.sum(0)
            squares += block.square().sum(0)
        total += scale.apply(block).sum(0)
    total = sum_over_ranks(total)
    if constants is None:
        return total, None
    mean, mean_square = sum_over_ranks(gradients) / picked, sum_over_ranks(squares) / picked
    return total, fold_in(mean, mean_square, history, constants)
