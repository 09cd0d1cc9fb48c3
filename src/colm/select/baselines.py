"""Baseline picks that need one number per row, or none."""

from __future__ import annotations

import torch
from torch import Tensor


def random_rows(count: int, budget: int, generator: torch.Generator) -> Tensor:
    """Draw `budget` of `count` rows without replacement, ascending, (budget,) int64 on the CPU."""
    return torch.randperm(count, generator=generator)[:budget].sort().values


def largest_rows(scores: Tensor, budget: int) -> Tensor:
    """Return the `budget` rows with the largest scores (n,), best first; ties go to the lower row, (budget,) int64.

    >>> largest_rows(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2).tolist()
    [1, 2]
    """
    return scores.argsort(descending=True, stable=True)[:budget]


def middle_rows(scores: Tensor, budget: int) -> Tensor:
    """Return the `budget` rows in the middle of the ranking by score (n,), lowest score first, (budget,) int64.

    Based on rank, so that losses and perplexities give the same rows. Without an exact middle, the upper run is used.

    >>> middle_rows(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]), 3).tolist()
    [3, 4, 2]
    """
    first = (len(scores) - budget + 1) // 2
    return scores.argsort(stable=True)[first : first + budget]
