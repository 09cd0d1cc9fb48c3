"""The fused kernel of the head gives each row's loss, and each weight's gradient, as all logits do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.gpu.support import DEVICE, adapted, on, ragged_batch, relative_error, tiny_model
from torch import Tensor

from colm.errors import ConfigError
from colm.features.fused import require_fused
from colm.lean import LeanHead
from colm.losses import example_losses

pytestmark = pytest.mark.gpu

KINDS = ("trained", "frozen", "tied", "bias", "cap")
LIMITS = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Largest relative error; bfloat16's is that of its roundings."""


def build(kind: str, dtype: torch.dtype) -> Any:
    """Return a model whose head is large enough for several chunks of the kernel, and odd in size."""
    shape = {"vocab_size": 3001, "tie_word_embeddings": kind == "tied"}
    if kind == "cap":
        from transformers import Gemma2Config, Gemma2ForCausalLM

        torch.manual_seed(0)
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2}
        sizes = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.1}
        config = Gemma2Config(**shape, **heads, **sizes, final_logit_softcapping=3.0, attn_logit_softcapping=None)
        model: Any = Gemma2ForCausalLM(config)
    else:
        model = tiny_model(layers=2, **shape)
    if kind == "bias":
        model.lm_head.bias = torch.nn.Parameter(torch.randn(3001))
    if kind == "frozen":
        model = adapted(model, ["q_proj", "v_proj"])
    return model.to(DEVICE, dtype).train()


def gradients(model: Any, losses: Tensor) -> dict[str, Tensor]:
    """Return every weight's gradient of the rows' losses, each row with its own weight."""
    model.zero_grad()
    (losses * torch.linspace(0.5, 1.5, len(losses), device=losses.device)).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_fused_is_all_logits(kind: str, dtype: torch.dtype, measured: Callable[..., None]) -> None:
    try:
        require_fused()
    except ConfigError as error:
        pytest.skip(str(error))
    model = build(kind, dtype)
    batch = on(DEVICE, ragged_batch([40, 33, 7, 64]))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    head = LeanHead(model, fused=True)
    assert head.fused
    expected, found = example_losses(model(**inputs).logits, batch["labels"]), head(model, batch)
    wanted, ours = gradients(model, expected), gradients(model, found)
    assert set(ours) == set(wanted)
    largest = max(float(each.norm()) for each in wanted.values())
    parts = [name for name, each in wanted.items() if float(each.norm()) > 1e-3 * largest]
    worst = max(relative_error(ours[name], wanted[name]) for name in parts)
    of_losses = relative_error(found.detach(), expected.detach())
    measured(losses=of_losses, gradients=worst)
    assert of_losses <= LIMITS[dtype]
    assert worst <= LIMITS[dtype]


@pytest.mark.parametrize("kind", ["trained", "frozen"])
def test_fused_under_autocast(kind: str, measured: Callable[..., None]) -> None:
    try:
        require_fused()
    except ConfigError as error:
        pytest.skip(str(error))
    model = build(kind, torch.float32)
    batch = on(DEVICE, ragged_batch([40, 33, 7, 64]))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.autocast(DEVICE.type, torch.bfloat16):
        head = LeanHead(model, fused=True)
        expected, found = example_losses(model(**inputs).logits, batch["labels"]), head(model, batch)
    wanted, ours = gradients(model, expected), gradients(model, found)
    worst = max(relative_error(ours[name], each) for name, each in wanted.items() if "weight" in name)
    measured(losses=relative_error(found.detach(), expected.detach()), gradients=worst)
    assert head.fused
    assert worst <= 5e-2
