"""Greedy picks whose sum points in the direction of a goal, such as the sum of all rows."""

from __future__ import annotations

import torch
from torch import Tensor


def match_direction(features: Tensor, budget: int, goal: Tensor | None = None) -> Tensor:
    """Pick rows one at a time so that the picks' sum comes closest to the goal's direction.

    Greedy on the cosine, using only inner products. Not submodular, so there is no guarantee of optimality.

    Args:
        features: (n, d), finite.
        budget: number of picks, 0 to n.
        goal: (d,), whose length does not matter; default: the sum of all rows.

    Returns:
        (budget,) int64, in picking order; ties go to the lower row.
    """
    x = features.double()
    products = x @ x.T  # (n, n)
    towards = products.sum(1) if goal is None else x @ goal.double()  # inner product of each row with the goal
    own = products.diagonal()
    picks = torch.zeros(budget, dtype=torch.int64, device=features.device)
    left = torch.ones(len(x), dtype=torch.bool, device=features.device)
    with_picks = torch.zeros_like(towards)  # inner product of each row with the picks' sum
    along = towards.new_zeros(1)
    square = towards.new_zeros(1)
    for step in range(budget):
        lengths = (square + 2 * with_picks + own).clamp_min(1e-300).sqrt()
        cosines = ((along + towards) / lengths).masked_fill(~left, -torch.inf)
        best = cosines.max()
        # Floating-point noise must not decide; argmax returns the first maximum. Indexing with a 0-dimensional tensor
        # would read it on the host.
        pick = (cosines >= best - 1e-9 * best.abs()).to(torch.uint8).argmax(0, keepdim=True)
        picks[step : step + 1] = pick
        left.index_fill_(0, pick, False)
        square = square + 2 * with_picks.index_select(0, pick) + own.index_select(0, pick)
        along = along + towards.index_select(0, pick)
        with_picks = with_picks + products.index_select(0, pick)[0]
    return picks
