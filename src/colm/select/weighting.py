"""Weights of the kept rows in the training loss: by what they represent, or fitted to a goal."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 0.1
"""Ridge penalty toward weights of 1, in units of the picks' mean squared norm."""


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
        return torch.ones(kept) / kept
    if kind == "represented":
        return stands_for / pool_rows
    if kind == "relative" and big.any():
        stands_for = stands_for / stands_for[big].mean()
    # Rows of small sources count 1, even if there were too many to keep them all.
    return torch.where(big, stands_for, 1.0) / kept


def fit_weights(features: Tensor, goal: Tensor) -> Tensor:
    """Return the row weights whose weighted sum is closest to the goal.

    Ridge regression that shrinks toward weights of 1; negative weights are set to 0.

    Args:
        features: (k, h) float32, finite, of the kept rows.
        goal: (h,), target of the weighted sum.

    Returns:
        (k,) float64 on the device of `features`, at least 0; all 1 if the fit is degenerate.

    Source: calibration estimators in survey sampling, Deville and Sarndal, 1992; for gradients, with orthogonal
    matching pursuit instead, GRAD-MATCH (Killamsetty et al., 2021).

    >>> fit_weights(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1.5, 0.5]))
    tensor([1.4..., 0.5...], dtype=torch.float64)
    """
    even = torch.ones(len(features), dtype=torch.float64, device=features.device)
    if len(features) == 0:
        return even
    x = features.double()
    products = x @ x.T
    pull = RIDGE * products.diagonal().mean()
    identity = torch.eye(len(x), dtype=torch.float64, device=x.device)
    missing = x @ goal.double() - products.sum(1)
    change, _ = torch.linalg.solve_ex(products + pull * identity, missing)  # unchecked, to avoid a read on the host
    weights = (even + change).clamp_min(0)
    return torch.where((pull > 0) & (weights.sum() > 0), weights, even)
