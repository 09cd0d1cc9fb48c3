"""Skip products whose values are never read when a layer runs again only for its gradients.

A layer may end in ``hidden + down(x)``. Its backward needs ``x`` and the weight of ``down``, but not their product,
which takes up to a quarter of the layer's forward. The ordinary checkpoint also stops before this product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

PASSED_ON = {"AddBackward0", "ToCopyBackward0", "ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0"}
"""Autograd nodes whose backward does not read the values of their inputs."""


class LinearCalls(TorchFunctionMode):
    """Within the block, watch calls of `linear`, and return zeros instead of products with some weights.

    Args:
        left_out: weights whose products are never read; their gradients are still correct.

    Attributes:
        products: each weight with its product, in call order.
    """

    def __init__(self, left_out: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self._left_out = left_out
        self.products: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not linear or kwargs:
            return func(*args, **(kwargs or {}))
        inputs, weight = args[:2]
        if any(weight is other for other in self._left_out):
            return _ValuelessLinear.apply(inputs, weight, args[2] if len(args) > 2 else None)  # type: ignore[no-untyped-call]
        product: Tensor = func(*args)
        self.products.append((weight, product))
        return product


def unread_weights(output: Tensor, products: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Return the weights that are used once and whose product is only added into `output`.

    Args:
        output: output of a layer that ran with a graph that still exists.
        products: products of the layer's `linear` calls.
    """
    readers: dict[Any, list[Any]] = {output.grad_fn: []}
    todo = [output.grad_fn] if output.grad_fn is not None else []
    while todo:
        reader = todo.pop()
        for node, _ in reader.next_functions:
            if node is not None and node not in readers:
                todo.append(node)
                readers[node] = []
            if node is not None:
                readers[node].append(reader)
    known: dict[Any, bool] = {}

    def unread(node: Any) -> bool:
        """Return whether all readers of a node pass its value on, and their own values are unread too."""
        if node not in known:
            known[node] = all(reader.name() in PASSED_ON and unread(reader) for reader in readers[node])
        return known[node]

    once = [(w, p.grad_fn) for w, p in products if sum(w is other for other, _ in products) == 1]
    return tuple(weight for weight, node in once if node in readers and unread(node))


class _ValuelessLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kind = inputs.device.type
        autocast = torch.is_autocast_enabled(kind)
        ctx.dtype = torch.get_autocast_dtype(kind) if autocast else inputs.dtype
        ctx.save_for_backward(inputs, weight)
        return inputs.new_zeros((*inputs.shape[:-1], weight.shape[0]), dtype=ctx.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        at_inputs = at_weight = at_bias = None
        if ctx.needs_input_grad[0]:
            at_inputs = (flat @ weight.to(ctx.dtype)).view(inputs.shape).to(inputs.dtype)
        if ctx.needs_input_grad[1]:
            at_weight = (flat.T @ inputs.reshape(-1, inputs.shape[-1]).to(ctx.dtype)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            at_bias = flat.sum(0).to(weight.dtype)
        return at_inputs, at_weight, at_bias
