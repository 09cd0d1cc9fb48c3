"""Weights of the kept rows in the training loss."""

from __future__ import annotations

import torch
from torch import Tensor


def weigh_picks(stands_for: Tensor, big: Tensor, pool_rows: int, kind: str) -> Tensor:
    """Return the weights of the kept rows in the loss, (K,) float32.

    Args:
        stands_for: (K,) float, how many pool rows each kept row represents; or fitted weights.
        big: (K,) bool, which rows come from large sources.
        pool_rows: N, number of candidate rows.
        kind: ``uniform``, ``represented``, ``relative`` or ``fitted``, see `SelectionConfig.weights`.

    >>> weigh_picks(torch.tensor([3.0, 1.0, 1.0]), torch.tensor([True, True, False]), 5, "relative")
    tensor([0.5000, 0.1667, 0.3333])
    """
    kept = len(stands_for)
    if kind == "uniform":
        return torch.full((kept,), 1.0 / kept)
    if kind == "represented":
        return stands_for / pool_rows
    if kind == "relative" and big.any():
        stands_for = stands_for / stands_for[big].mean()
    # Rows of small sources count 1, even if there were too many to keep them all.
    return torch.where(big, stands_for, 1.0) / kept
