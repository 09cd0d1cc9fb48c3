"""Picks that need no features."""

from __future__ import annotations

import torch
from torch import Tensor


def random_rows(count: int, budget: int, generator: torch.Generator) -> Tensor:
    """Draw `budget` of `count` rows without replacement, ascending, (budget,) int64 on the CPU."""
    return torch.randperm(count, generator=generator)[:budget].sort().values
