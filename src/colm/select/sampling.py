"""Random picks: uniform, or with probability proportional to size, for unbiased means."""

from __future__ import annotations

import torch
from torch import Tensor

from colm.step.transfer import send


def random_rows(count: int, budget: int, generator: torch.Generator) -> Tensor:
    """Draw `budget` of `count` rows without replacement, ascending, (budget,) int64 on the CPU."""
    return torch.randperm(count, generator=generator)[:budget].sort().values


def inclusion_chances(sizes: Tensor, budget: int) -> Tensor:
    """Return each row's inclusion probability, proportional to its size and at most 1, (n,) float64.

    Rows whose probability would exceed 1 are always picked, and the other rows share the rest of the budget. If
    too few rows have a positive size, the remaining budget is spread evenly over the others.

    Args:
        sizes: (n,), finite, at least 0.
        budget: expected number of picks, 0 to n; the probabilities sum to it.

    Source: Horvitz and Thompson, 1952.
    """
    sizes = sizes.double()
    n = len(sizes)
    chances = torch.zeros(n, dtype=torch.float64, device=sizes.device)
    if budget == 0 or n == 0:
        return chances
    certain = torch.zeros(n, dtype=torch.bool, device=sizes.device)
    for _ in range(n):
        left = budget - int(certain.sum())
        rest = torch.where(certain, 0.0, sizes)
        if left <= 0 or float(rest.sum()) <= 0:
            break
        chances = torch.where(certain, 1.0, left * rest / rest.sum())
        above = (chances >= 1.0) & ~certain
        if not above.any():
            break
        certain |= above
    chances = torch.where(certain, 1.0, chances.clamp(0.0, 1.0))
    missing = budget - float(chances.sum())
    if missing > 1e-9:  # fewer rows of positive size than picks
        empty = chances == 0
        chances = torch.where(empty, missing / int(empty.sum()), chances)
    return chances


def sample_by_size(sizes: Tensor, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `budget` rows with probability proportional to size.

    Systematic sampling over a random order: exactly `budget` rows, each with exactly its inclusion probability.

    Returns:
        rows (budget,) int64, ascending, on the device of `sizes`; inclusion probabilities (n,) float64.

    Source: Madow, 1949; with weights of 1 / probability the mean is unbiased (Horvitz and Thompson, 1952).
    """
    chances = inclusion_chances(sizes.cpu(), budget)  # one read on the host: control flow depends on the values
    order = torch.randperm(len(sizes), generator=generator)
    start = torch.rand((), generator=generator, dtype=torch.float64)
    if budget == 0:
        return order[:0].to(sizes.device), chances.to(sizes.device)
    ends = chances[order].cumsum(0)
    ends[-1] = budget  # true up to rounding
    marks = torch.arange(budget, dtype=torch.float64) + start
    hit = torch.searchsorted(ends, marks, right=True).clamp_max(len(sizes) - 1)
    return send(order[hit].sort().values, sizes.device), send(chances, sizes.device)
