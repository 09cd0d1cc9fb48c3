"""Fit weights so that the kept rows' weighted sum is close to a goal, such as the same number of average rows."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 0.1
"""Ridge penalty toward weights of 1, in units of the picks' mean squared norm."""


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
