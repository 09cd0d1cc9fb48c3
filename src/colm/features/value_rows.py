"""Find which outputs of a fused projection are values: those that affect the logits of a single token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from colm.errors import UnsupportedModelError

NOISE = 1e-6
"""With one token, queries and keys have no influence; a fused attention kernel may leave noise below this."""

WIDE_GAP = 10.0
"""Ratio of influences that separates values from other outputs if those have some influence too."""


def find_value_rows(model: nn.Module, name: str, influence: Tensor) -> Tensor | None:
    """Return the outputs of a fused projection that affect the logits of a single token; None means all."""
    rows = (influence > NOISE * influence.max()).nonzero()[:, 0]
    expected = _value_sizes(model, name)
    if expected and len(rows) not in expected:
        rows = _above_gap(influence, expected)
    if expected and len(rows) not in expected:
        rows = _complete(rows, len(influence), expected)
    if expected and len(rows) not in expected:
        raise UnsupportedModelError(
            f"{len(rows)} of the {len(influence)} outputs of {name} act as values, but the model's heads imply "
            f"{' or '.join(map(str, sorted(expected)))}. Name another Linear with value_module."
        )
    return rows if len(rows) < len(influence) else None


def _above_gap(influence: Tensor, expected: set[int]) -> Tensor:
    """Return the outputs above the widest gap in influence. With an attention sink, keys have some influence too.

    A gap counts only if it is at least tenfold and leaves an expected number of outputs above it.
    """
    ordered = influence.sort(descending=True).values.clamp_min(torch.finfo(influence.dtype).tiny)
    gaps = {count: float(ordered[count - 1] / ordered[count]) for count in expected if count < len(ordered)}
    count = max(gaps, key=lambda count: gaps[count], default=0)
    if count == 0 or gaps[count] < WIDE_GAP:
        return (influence > NOISE * influence.max()).nonzero()[:, 0]
    return (influence >= ordered[count - 1]).nonzero()[:, 0]


def _complete(rows: Tensor, outputs: int, expected: set[int]) -> Tensor:
    """Add values without influence, such as pruned channels: complete the equal-sized blocks that hold `rows`."""
    touched = set(rows.tolist())
    for count in sorted(size for size in expected if size > len(rows)):
        for block in (size for size in range(count, 0, -1) if count % size == 0 and outputs % size == 0):
            blocks = sorted({row // block for row in touched})
            if len(blocks) * block == count:
                return torch.tensor([start * block + i for start in blocks for i in range(block)], device=rows.device)
    return rows


def _value_sizes(model: Any, name: str) -> set[int]:
    """Return the value counts per token that the config allows: key-value heads, or all heads, times head size."""
    config = layer_config(model, name)
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return set()
    sizes = {
        getattr(config, "head_dim", None),
        getattr(config, "v_head_dim", None),
        getattr(config, "kv_channels", None),
    }
    sizes |= {config.hidden_size // heads, getattr(config, "attention_head_size", None)}
    groups = {heads, getattr(config, "num_key_value_heads", None), getattr(config, "num_kv_heads", None), 1}
    return {count * size for count in groups if isinstance(count, int) for size in sizes if isinstance(size, int)}


def layer_config(model: Any, name: str) -> Any:
    """Return the text model's config for the layer on the path `name`, or None."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    config = config.get_text_config()
    if getattr(config, "is_heterogeneous", False):  # reading a setting that differs by layer would raise
        config = config.per_layer_config[next((int(part) for part in name.split(".") if part.isdigit()), 0)]
    return config
