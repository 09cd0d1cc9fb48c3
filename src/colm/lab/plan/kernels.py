"""GPU kernels that keep different tensors than their CPU counterparts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_aten: Any = torch.ops.aten


@contextmanager
def gpu_kernels() -> Iterator[None]:
    """Inside the block, fake CPU tensors go through the operations that a GPU would run.

    Dropout keeps a boolean mask instead of a float mask. Attention is memory-efficient: it keeps its output, a float32
    number per query, and the given mask in the queries' dtype.

    Real tensors must not be used inside the block, since it replaces functions of torch.nn.functional. (PyTorch's
    function mode is not active when a checkpointed layer is recomputed.)
    """
    original = {name: getattr(functional, name) for name in _REPLACED}
    for name, replacement in _REPLACED.items():
        setattr(functional, name, replacement)
    try:
        yield
    finally:
        for name, function in original.items():
            setattr(functional, name, function)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return input
    dropped: Tensor = torch.native_dropout(input, p, True)[0]
    return dropped


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    out: Tensor
    keeps = any(tensor.requires_grad for tensor in (query, key, value)) and torch.is_grad_enabled()
    if attn_mask is None and query.dtype != torch.float32:
        out = _aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return out
    if enable_gqa and key.shape[1] != query.shape[1]:  # only the flash kernel supports grouped heads
        copies = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = query.new_zeros(attn_mask.shape).masked_fill_(attn_mask.logical_not(), float("-inf"))
    if attn_mask is not None:
        attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    out = _aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, keeps, dropout_p, is_causal, scale=scale
    )[0]
    return out


_REPLACED = {"dropout": _dropout, "scaled_dot_product_attention": _attention}
