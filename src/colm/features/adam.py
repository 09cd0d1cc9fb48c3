"""Turn each example's gradient into the step that Adam would take with it alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from colm.features.linear_maps import output_rows
from colm.features.site import ValueSite
from colm.types import AdamHistory


class AdamConstants(NamedTuple):
    """The optimizer's constants."""

    beta1: float
    beta2: float
    eps: float


def to_adam_steps(gradients: Tensor, history: AdamHistory, constants: AdamConstants) -> Tensor:
    """Replace each example's gradient, in place, with the Adam step it would cause as the next gradient.

    m_i = b1 m + (1 - b1) g_i, v_i = b2 v + (1 - b2) g_i^2, both bias-corrected for step number
    ``history.updates + 1``; the step is m_i / (sqrt(v_i) + eps), without the learning rate.

    Args:
        gradients: (n, D) float32; overwritten, since a copy could be the largest tensor in selection.
        history: moments of the examples kept so far, (D,) each.
        constants: from the optimizer that trains the weight.

    Returns:
        `gradients`, now holding the steps.

    Source: CoLM, section 4.3, equation 10.
    """
    beta1, beta2, eps = constants
    t = history.updates + 1
    # Both bias-correction divisions are folded into the factors, which saves two passes.
    first, second = 1 / (1 - beta1**t), 1 / (1 - beta2**t)
    sizes = gradients.square().mul_((1 - beta2) * second).add_(history.v, alpha=beta2 * second).sqrt_().add_(eps)
    return gradients.mul_((1 - beta1) * first).add_(history.m, alpha=beta1 * first).div_(sizes)


def fold_in(mean: Tensor, mean_square: Tensor, history: AdamHistory, constants: AdamConstants) -> AdamHistory:
    """Return the mean of the picked rows' moments, each updated with that row's gradient.

    Args:
        mean: mean of the picked rows' gradients, (D,) float32.
        mean_square: mean of their squares, (D,) float32.
        history: moments before this update.
        constants: from the optimizer that trains the weight.
    """
    m = constants.beta1 * history.m + (1 - constants.beta1) * mean
    v = constants.beta2 * history.v + (1 - constants.beta2) * mean_square
    return AdamHistory(m, v, history.updates + 1)


def empty_history(dim: int, device: torch.device) -> AdamHistory:
    """Return the initial history, before any example is kept."""
    return AdamHistory(torch.zeros(dim, device=device), torch.zeros(dim, device=device), 0)


def adam_constants(optimizer: Any, weight: Tensor) -> AdamConstants | None:
    """Return the constants of the parameter group that holds `weight`, or None if it is not Adam-like.

    If no group holds the weight (because it is frozen, or the optimizer holds shards), the first
    group is used. A group without two betas and an eps is not Adam-like (SGD, Adafactor).
    """
    groups = list(optimizer.param_groups)
    holding = [group for group in groups if any(parameter is weight for parameter in group["params"])]
    group = (holding or groups)[0]
    betas, eps = group.get("betas"), group.get("eps")
    if not (isinstance(betas, tuple | list) and len(betas) == 2 and isinstance(eps, int | float)):
        return None
    return AdamConstants(float(betas[0]), float(betas[1]), float(eps))


def adam_scale(site: ValueSite, optimizer: Any) -> Tensor | None:
    """Return the scale in which the optimizer steps along the gradient of the site's weight, (D,) float32.

    Adam's step without momentum, P g with P = 1 / (sqrt(v) + eps), is plain gradient descent in coordinates where the
    gradient is P^(1/2) g. This returns P^(1/2), from the optimizer's own v: the same for all rows, unlike in
    `to_adam_steps`, so scaled gradients of rows have the mean and the covariance of the scaled gradient of a step. A
    coordinate that never had a gradient gets 0.

    Args:
        site: from `locate_value_site`.
        optimizer: that trains the weight, or None.

    Returns:
        None if the optimizer holds no second moments of this weight: it is not Adam, or the weight is not trained.
    """
    held = getattr(optimizer, "state", {}).get(site.weight) or {}
    squares, steps = held.get("exp_avg_sq"), held.get("step")
    constants = None if optimizer is None else adam_constants(optimizer, site.weight)
    if constants is None or not isinstance(squares, Tensor) or squares.shape != site.weight.shape:
        return None
    squares = output_rows(site.module, squares.detach().float())
    if site.value_rows is not None:
        squares = squares[site.value_rows.to(squares.device)]
    corrected = squares.flatten() / (1.0 if steps is None else 1 - constants.beta2 ** float(steps))
    return torch.where(corrected > 0, (corrected.sqrt() + constants.eps).rsqrt(), 0.0)
