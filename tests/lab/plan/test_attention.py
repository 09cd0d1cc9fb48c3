"""Ways to compute attention in a plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig

from colm import SelectionConfig
from colm.errors import ConfigError
from colm.lab.plan.attention import flash_attention
from colm.lab.plan.counting import DryRun
from colm.lab.plan.shapes import ModelSpec, build_shapes
from colm.lab.plan.steps import Rehearsal, Rows


def shape() -> Any:
    return LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )


@pytest.mark.parametrize("rows", [[16, 16], [10, 10, 11]])
def test_flash_attention_computes_each_row_alone(rows: list[int]) -> None:
    joined = rows[0] != rows[-1]
    n, tokens = (1, sum(rows)) if joined else (len(rows), rows[0])
    bounds = torch.tensor([0, *torch.tensor(rows).cumsum(0).tolist()]) if joined else None
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        query, key = (torch.empty(n, heads, tokens, 8, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2))
    with DryRun(fake) as dry:
        longest = max(rows) if joined else None
        out, _ = flash_attention(None, query, key, key, None, cu_seq_lens_q=bounds, max_length_q=longest)
        assert out.shape == (n, tokens, 4, 8)
        assert dry.flops == sum(2 * 2 * 4 * row * row * 8 for row in rows)  # two products of 4 heads, each 2 T^2 d
        assert dry.live < 2 * (2 * n * tokens * 4 * 8) + 4096  # its output, not the T^2 weights
        out.sum().backward()
    assert query.grad is not None
    assert key.grad is not None


def costs(attention: str, *, padding_free: bool = False) -> Any:
    shapes = build_shapes(ModelSpec("x", "bfloat16", attention=attention), shape())
    selection = SelectionConfig(padding_free=padding_free)
    return Rehearsal(shapes, selection, Rows(256)).train(4, accumulated=False)


def test_attention_changes_the_plan() -> None:
    eager, own, flash = (costs(name) for name in ("eager", "auto", "flash_attention_2"))
    assert eager.peak > own.peak > flash.peak
    assert own.peak == costs("sdpa").peak == costs("flex_attention").peak
    joined = costs("kernels-community/flash-attn2", padding_free=True)
    assert joined.flops == pytest.approx(flash.flops, rel=0.02)  # rows do not see each other
    assert joined.flops < costs("auto", padding_free=True).flops


def test_flash_attention_needs_half_precision() -> None:
    with pytest.raises(ConfigError, match="attention='flash_attention_2' needs bfloat16 or float16"):
        build_shapes(ModelSpec("x", "float32", attention="flash_attention_2"), shape())
