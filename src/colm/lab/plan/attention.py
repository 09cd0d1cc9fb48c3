"""Attention as a run computes it, with FlashAttention's memory and operations on tensors without values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from colm.lab.run.named import check_half

PLANNED = ("auto", "eager", "sdpa")
"""Ways to compute attention that run in a plan as they are; those named after flash are FlashAttention."""

FLASH = "planned_attention"
"""The name under which transformers runs `flash_attention`; for one with flash in it, it would look for a kernel."""

_aten: Any = torch.ops.aten


def is_flash(name: str) -> bool:
    """Return whether a setting of `attention` names FlashAttention or a kernel of it."""
    return "flash" in name.lower()


def set_planned_attention(model: Any, name: str) -> None:
    """Let a model of meta tensors compute attention as the setting says, where a plan can.

    Raises:
        ConfigError: FlashAttention with weights in float32.
    """
    if is_flash(name):
        from transformers import AttentionInterface, AttentionMaskInterface

        check_half(name, model.dtype)
        AttentionInterface.register(FLASH, flash_attention)
        AttentionMaskInterface.register(FLASH, _no_mask)
        model.set_attn_implementation(FLASH)
    elif name in PLANNED and name != "auto":
        model.set_attn_implementation(name)


def flash_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Allocate what FlashAttention does: its output, and a float32 number for each query and head.

    Rows that are joined attend to themselves alone. Padding is computed like tokens, windows like whole rows.

    Args:
        module: unused.
        query: (n, heads, T, d)
        key: (n, key heads, T, d)
        value: as key
        attention_mask: unused
        dropout: probability.
        scaling: of the products.
        cu_seq_lens_q: (rows + 1,), where joined rows begin and end.
        max_length_q: tokens of the longest joined row.
        other: unused.

    Returns:
        The outputs, (n, T, heads, d).
    """
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    size = query.shape[1]
    joined = cu_seq_lens_q is not None and max_length_q is not None
    if joined:
        query, key, value = (tensor.flatten(0, 1) for tensor in (query, key, value))
    longest = max_length_q if joined else size
    out: Tensor = _aten._flash_attention_forward(
        query, key, value, cu_seq_lens_q, cu_seq_lens_q, longest, longest, dropout, True, False, scale=scaling
    )[0]
    return (out[None] if joined else out), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None
