"""Weights with which the kept rows' mean is near the mean of all rows."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 0.1
"""Pull towards even weights, in units of the picks' mean squared norm."""


def fit_weights(features: Tensor, picks: Tensor) -> Tensor:
    """Return weights for `picks` with which their mean feature is nearest to that of all rows.

    Ridge regression with even weights as its origin, negative weights set to 0, the rest scaled to a mean of 1.
    The scale is free as far as Adam is concerned, and a mean of 1 leaves the balance with other rows as it is.

    Args:
        features: (n, h) float32, finite.
        picks: (k,) int64, distinct.

    Returns:
        (k,) float64 on the device of `features`, at least 0, mean 1; all 1 where the fit has nothing to go by.

    Source: calibration estimators of survey sampling, Deville and Sarndal, 1992.

    >>> fit_weights(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 2]))
    tensor([1.3..., 0.6...], dtype=torch.float64)
    """
    even = torch.ones(len(picks), dtype=torch.float64, device=features.device)
    if len(picks) == 0:
        return even
    x = features.double()
    held = x[picks]
    products = held @ held.T
    pull = RIDGE * products.diagonal().mean()
    if not float(pull) > 0:
        return even
    start = even / len(picks)
    missing = held @ x.mean(0) - products @ start
    identity = torch.eye(len(picks), dtype=torch.float64, device=features.device)
    weights = (start + torch.linalg.solve(products + pull * identity, missing)).clamp_min(0)
    total = weights.sum()
    return weights * (len(picks) / total) if float(total) > 0 else even
