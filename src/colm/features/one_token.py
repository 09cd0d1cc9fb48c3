"""Probe a model with one token: which maps run, which outputs affect the logits, how the output head is reached."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from colm.errors import UnsupportedModelError
from colm.features.capture import run_one_token, undisturbed
from colm.features.head import OutputHead, match_head, output_module
from colm.features.precision import Precision


def find_head(model: nn.Module) -> OutputHead | None:
    """Return the output head if it reproduces the model's own logits on one token; else None."""
    head = output_module(model)
    read: list[Tensor] = []
    precision: list[Precision] = []
    if head is None:
        return None

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        read.append(args[0])
        precision.append(Precision.of(args[0].device.type))  # accelerate wraps a model's forward in autocast

    logits = run_one_token(model, {head: note})
    if len(read) != 1 or read[0].shape[:-1] != (1, 1):
        return None
    with undisturbed(model), precision[0].context():
        return match_head(model, read[0][0], logits.reshape(1, -1))


def observe_calls(model: nn.Module, watched: Mapping[str, nn.Module]) -> list[tuple[str, torch.Size]]:
    """Return the watched modules' calls on one token, in order: name and input shape."""
    calls: list[tuple[str, torch.Size]] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any, *, name: str) -> None:
        calls.append((name, args[0].shape if args else torch.Size()))

    run_one_token(model, {module: partial(note, name=name) for name, module in watched.items()})
    return calls


def require_finite_logits(model: nn.Module) -> None:
    """Check that the logits of one token are finite. Minus infinity is allowed: some models mask with it.

    Raises:
        UnsupportedModelError: they are not finite; names the first non-finite weight, if any.
    """
    with torch.no_grad():
        logits = run_one_token(model, {})
        sound = logits.isfinite() | logits.isneginf()
        if bool(sound.all()):
            return
        lost = int((~sound).sum())
        broken = next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)
    where = f"the weight {broken} is not finite" if broken else "all weights are finite, so the forward overflows"
    raise UnsupportedModelError(
        f"The model's logits are not finite: {lost:,} of {logits.numel():,} for one token, in {logits.dtype}; {where}. "
        "Load intact weights, or compute in bfloat16 or float32."
    )


def one_token_influence(model: nn.Module, module: nn.Module, *, directions: int = 4) -> Tensor:
    """Return how strongly each output of `module` affects the logits of a single token, (d_out,) float32.

    This is the root mean square, over random logit directions, of the gradient at the module's output.
    """
    seen: list[Tensor] = []

    def start_graph(watched: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        seen.append(output.detach().requires_grad_())
        return seen[-1].clone()  # an adapter may add to it in place

    with torch.enable_grad():  # even if the caller disabled gradients
        logits = run_one_token(model, {module: start_graph}).float().flatten()
    if not seen:
        raise RuntimeError("never called")
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(seen[-1].shape[-1], device=logits.device)
    for _ in range(directions):
        direction = torch.randn(len(logits), generator=generator).to(logits.device)
        (gradient,) = torch.autograd.grad(logits @ direction, seen[-1], retain_graph=True)
        total += gradient.float().reshape(-1, len(total)).square().sum(0)
    return (total / directions).sqrt()
