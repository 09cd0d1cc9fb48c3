"""Picks that need one number for each row, or none."""

from __future__ import annotations

import torch
from torch import Tensor


def random_rows(count: int, budget: int, generator: torch.Generator) -> Tensor:
    """Draw `budget` of `count` rows without replacement, ascending, (budget,) int64 on the CPU."""
    return torch.randperm(count, generator=generator)[:budget].sort().values


def largest_rows(scores: Tensor, budget: int) -> Tensor:
    """Return the `budget` rows of largest score (n,), best first; of equals the lower row, (budget,) int64.

    >>> largest_rows(torch.tensor([1.0, 3.0, 3.0, 2.0]), 2).tolist()
    [1, 2]
    """
    return scores.argsort(descending=True, stable=True)[:budget]


def middle_rows(scores: Tensor, budget: int) -> Tensor:
    """Return the `budget` rows in the middle of the ranking by score (n,), lowest score first, (budget,) int64.

    By rank, so that losses and perplexities give the same rows. Where no run is exactly in the middle, the upper one.

    >>> middle_rows(torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0]), 3).tolist()
    [3, 4, 2]
    """
    first = (len(scores) - budget + 1) // 2
    return scores.argsort(stable=True)[first : first + budget]
