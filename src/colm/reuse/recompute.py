"""A layer checkpoint whose output is already known; only the backward runs the layer again.

This is the reentrant form of `torch.utils.checkpoint` with two differences. The forward returns the stored output. And
the layer's weights are inputs of the function, so their gradients come from the outer backward like all others:
DistributedDataParallel's hooks and `torch.autograd.grad` see nothing unusual. Random state is not replayed, because
dropout is not allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from colm.errors import UnsupportedModelError
from colm.features.precision import Precision
from colm.reuse.valueless import LinearCalls, unread_weights

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest relative difference (l2) between a layer's first and second outputs, by the type in which it computes;
`LOOSE` in lower precision. Rows in another micro-batch may take other kernels."""

LOOSE = 5e-2


class LayerCall(NamedTuple):
    """One call of a checkpointed layer in training, with its results from the selection pass."""

    name: str
    function: Callable[..., Any]  # the layer's forward, from the hidden states and `rest`
    rest: tuple[Any, ...]  # positional arguments after the hidden states
    precision: Precision
    output: Tensor  # (n, T, d), the value that `run_known` returns
    expected: Tensor | None  # (n, T, d), reference for the second run; None if already compared
    checked: dict[str, tuple[Tensor, ...]]  # for each compared layer, the weights whose products are unused
    used: Tensor | None  # (n, T), tokens that are not padding; None means all


def run_known(call: LayerCall, hidden: Tensor, stored: Tensor, parameters: list[Tensor]) -> Tensor:
    """Return the layer's known output, (n, T, d), with a backward that runs the layer again from `stored`.

    Args:
        call: the layer and its output.
        hidden: (n, T, d), the layer's input in training; only its place in the autograd graph matters.
        stored: (n, T, d), the layer's input in the selection pass, on the device or in host memory.
        parameters: the layer's trained weights.
    """
    output: Tensor = _KnownLayer.apply(call, hidden, stored, *parameters)  # type: ignore[no-untyped-call]
    return output


def relative_difference(expected: Tensor, found: Tensor, used: Tensor | None) -> float:
    """Return the relative l2 difference of two sets of states, (n, T, d), over the used tokens, (n, T)."""
    expected = expected.to(found.device)
    difference, size = found.float() - expected.float(), expected.float()
    if used is not None:
        counted = used.to(found.device)[..., None] != 0
        difference, size = difference * counted, size * counted
    return float(difference.norm() / size.norm().clamp_min(1e-30))


def first_tensor(output: Any) -> Tensor | None:
    """Return a layer's hidden states if its output is only these, or a tuple of these and None values; else None."""
    if isinstance(output, tuple | list) and output and all(part is None for part in output[1:]):
        output = output[0]
    return output if isinstance(output, Tensor) else None


class _KnownLayer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: LayerCall, hidden: Tensor, stored: Tensor, *parameters: Tensor) -> Tensor:
        ctx.call, ctx.parameters, ctx.device = call, parameters, hidden.device
        ctx.save_for_backward(stored)
        return call.output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        call: LayerCall = ctx.call
        (stored,) = ctx.saved_tensors
        hidden = stored.to(ctx.device, non_blocking=True).detach().requires_grad_(ctx.needs_input_grad[1])
        left_out = () if call.expected is not None else call.checked[call.name]
        with torch.enable_grad(), call.precision.context(), LinearCalls(left_out) as calls:
            output = first_tensor(call.function(hidden, *call.rest))
        assert output is not None
        if call.expected is not None:
            _check_second_run(call, call.expected, output.detach())
            call.checked[call.name] = unread_weights(output, calls.products)
        wanted = [tensor for tensor in (hidden, *ctx.parameters) if tensor.requires_grad]
        with _without_hooks(ctx.parameters):
            found = iter(torch.autograd.grad(output, wanted, gradient, allow_unused=True))
        gradients = [next(found) if tensor.requires_grad else None for tensor in (hidden, *ctx.parameters)]
        return (None, gradients[0], None, *gradients[1:])


@contextmanager
def _without_hooks(parameters: tuple[Tensor, ...]) -> Iterator[None]:
    """Within the block, remove the hooks on the weights' gradients; the outer backward calls them."""
    hooks: list[tuple[Any, dict[int, Any]]] = []
    for parameter in parameters:
        held: Any = parameter._backward_hooks
        if held:
            hooks.append((held, dict(held)))
            held.clear()
    try:
        yield
    finally:
        for held, functions in hooks:
            held.update(functions)


def _check_second_run(call: LayerCall, expected: Tensor, output: Tensor) -> None:
    """Compare the layer's second run with its first.

    Raises:
        UnsupportedModelError: they differ, so gradients would be wrong.
    """
    error = relative_difference(expected, output, call.used)
    computed = call.precision.dtype if call.precision.enabled else output.dtype  # autocast leaves residuals in float32
    if output.dtype != expected.dtype or not error <= TOLERANCES.get(computed, LOOSE):
        raise UnsupportedModelError(
            f"{call.name} returns different outputs in training and in the selection pass (relative difference "
            f"{error:.1e}, {output.dtype} and {expected.dtype}), so reuse_forward=True would train on wrong gradients. "
            "The layer may use random numbers, or read another layer's values; set reuse_forward=False."
        )
