"""Random picks whose chances follow a size, for means that stay unbiased."""

from __future__ import annotations

import torch
from torch import Tensor

from colm.step.transfer import send


def inclusion_chances(sizes: Tensor, budget: int) -> Tensor:
    """Return each row's chance to be picked, in proportion to its size and at most 1, (n,) float64.

    Rows whose share would be above 1 are certain, and the rest share what is left. Where too few rows have a
    size above 0, what they leave over is spread evenly.

    Args:
        sizes: (n,), finite, at least 0.
        budget: expected number of picks, from 0 to n; the chances sum to it.

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
    """Draw `budget` rows with chances in proportion to their sizes.

    Systematic sampling over a random order: exactly `budget` rows, each with exactly its chance.

    Returns:
        rows (budget,) int64, ascending, on the device of `sizes`; chances (n,) float64 of all rows.

    Source: Madow, 1949; with the weights 1 / chance the mean is unbiased (Horvitz and Thompson, 1952).
    """
    chances = inclusion_chances(sizes.cpu(), budget)  # read once: its choices hang on values
    order = torch.randperm(len(sizes), generator=generator)
    start = torch.rand((), generator=generator, dtype=torch.float64)
    if budget == 0:
        return order[:0].to(sizes.device), chances.to(sizes.device)
    ends = chances[order].cumsum(0)
    ends[-1] = budget  # it is, up to rounding
    marks = torch.arange(budget, dtype=torch.float64) + start
    hit = torch.searchsorted(ends, marks, right=True).clamp_max(len(sizes) - 1)
    return send(order[hit].sort().values, sizes.device), send(chances, sizes.device)
