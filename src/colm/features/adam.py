"""Turn a gradient into the step that Adam would take with it alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from colm.types import AdamHistory


class AdamConstants(NamedTuple):
    """The optimizer's own constants."""

    beta1: float
    beta2: float
    eps: float


def to_adam_steps(gradients: Tensor, history: AdamHistory, constants: AdamConstants) -> Tensor:
    """Turn each example's gradient into Adam's step if it were the next one, in the place of the gradients.

    m_i = b1 m + (1 - b1) g_i, v_i = b2 v + (1 - b2) g_i^2, both bias-corrected for the step number
    ``history.updates + 1``; the step is m_i / (sqrt(v_i) + eps), without the learning rate.

    Args:
        gradients: (n, D) float32; overwritten, since a copy of it may be the largest tensor of the selection.
        history: moments of the examples kept so far, (D,) each.
        constants: of the optimizer that trains the weight.

    Returns:
        `gradients`, which are now the steps.

    Source: CoLM, section 4.3, equation 10.
    """
    beta1, beta2, eps = constants
    t = history.updates + 1
    # Both divisions of the bias correction are taken into the factors, which saves two passes.
    first, second = 1 / (1 - beta1**t), 1 / (1 - beta2**t)
    sizes = gradients.square().mul_((1 - beta2) * second).add_(history.v, alpha=beta2 * second).sqrt_().add_(eps)
    return gradients.mul_((1 - beta1) * first).add_(history.m, alpha=beta1 * first).div_(sizes)


def fold_in(mean: Tensor, mean_square: Tensor, history: AdamHistory, constants: AdamConstants) -> AdamHistory:
    """Return the mean of the moments that the picked rows have, each after its own gradient.

    Args:
        mean: of the picked rows' gradients, (D,) float32.
        mean_square: of their squares, (D,) float32.
        history: before them.
        constants: of the optimizer that trains the weight.
    """
    m = constants.beta1 * history.m + (1 - constants.beta1) * mean
    v = constants.beta2 * history.v + (1 - constants.beta2) * mean_square
    return AdamHistory(m, v, history.updates + 1)


def empty_history(dim: int, device: torch.device) -> AdamHistory:
    """Return the history before the first kept example."""
    return AdamHistory(torch.zeros(dim, device=device), torch.zeros(dim, device=device), 0)


def adam_constants(optimizer: Any, weight: Tensor) -> AdamConstants | None:
    """Return the constants of the parameter group that holds `weight`, or None if it is not Adam-like.

    Where no group holds the weight itself (it is frozen, or the optimizer holds shards), the first
    group speaks for all. A group without two betas and an eps is not Adam-like (SGD, Adafactor).
    """
    groups = list(optimizer.param_groups)
    holding = [group for group in groups if any(parameter is weight for parameter in group["params"])]
    group = (holding or groups)[0]
    betas, eps = group.get("betas"), group.get("eps")
    if not (isinstance(betas, tuple | list) and len(betas) == 2 and isinstance(eps, int | float)):
        return None
    return AdamConstants(float(betas[0]), float(betas[1]), float(eps))
