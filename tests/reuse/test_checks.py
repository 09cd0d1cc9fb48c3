"""What `reuse_forward` rejects, and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.support.architectures import build_architecture
from tests.support.models import ragged_batch, tiny_model
from tests.support.reuse_steps import (
    REUSE,
    SIZES,
    SOURCES,
    adapted,
    pool_of_two,
    ready,
    run_step,
    trainable,
)
from torch import nn

from colm import ConfigError, CoresetSelector, SelectionConfig, UnsupportedModelError
from colm.reuse import checks
from colm.reuse.checks import checkpoint_layers


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reuse_forward": 1}, "reuse_forward=1 must be true or false"),
        ({"reuse_offload": True}, "reuse_offload=True moves what reuse_forward keeps"),
        ({"reuse_forward": True, "features": "none"}, "features='none' runs no selection pass"),
        ({"reuse_forward": True, "features": "spsa"}, "features='spsa' runs the last layer with changed weights"),
    ],
)
def test_settings_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SelectionConfig(**values)


def test_dropout_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers.0.self_attn has attention_dropout=0.1; set the model's dropout"):
        CoresetSelector(tiny_model(attention_dropout=0.1), REUSE, SIZES)
    with pytest.raises(ConfigError, match=r"transformer.drop has p=0.1"):
        CoresetSelector(tiny_model("gpt2"), REUSE, SIZES)
    with pytest.raises(ConfigError, match=r"lora_dropout.default has p=0.05; .*lora_dropout"):
        CoresetSelector(adapted(tiny_model(), lora_dropout=0.05), REUSE, SIZES)


def test_dropout_under_another_name_is_found_at_the_first_backward() -> None:
    model = trainable()
    layer = model.model.layers[1]
    forward = layer.mlp.forward
    layer.mlp.forward = lambda hidden: nn.functional.dropout(forward(hidden), 0.5, layer.training)
    with pytest.raises(UnsupportedModelError, match=r"model.layers.1 returns different outputs in training"):
        run_step(model, REUSE)


def test_checkpointing_that_is_off_is_refused() -> None:
    model = tiny_model().train()
    selector = CoresetSelector(model, REUSE, SIZES)
    with pytest.raises(ConfigError, match=r"0 of 3 layers are checkpointed; set gradient_checkpointing=True"):
        selector.select(pool_of_two(), SOURCES)
    ready(model).model.layers[1].gradient_checkpointing = False  # as with every_n_layers
    with pytest.raises(ConfigError, match=r"2 of 3 layers are checkpointed"):
        selector.select(pool_of_two(), SOURCES)


@pytest.mark.parametrize(("surround", "sharded"), [(True, True), (True, False), (False, True)])
def test_fsdp2_within_checkpoints_is_refused(monkeypatch: pytest.MonkeyPatch, surround: bool, sharded: bool) -> None:
    monkeypatch.setattr(checks, "checkpoints_surround_hooks", lambda: surround)
    monkeypatch.setattr(checks, "is_sharded", lambda layer: sharded)
    selector = CoresetSelector(trainable(), REUSE, SIZES)
    if surround and sharded:
        with pytest.raises(UnsupportedModelError, match=r"upgrade transformers to 5.23 or newer, or set reuse_fo"):
            selector.select(pool_of_two(), SOURCES)
    else:
        selector.select(pool_of_two(), SOURCES)


def test_another_model_restores_the_first_models_checkpoint() -> None:
    model = trainable()
    functions = [layer._gradient_checkpointing_func for _, layer in checkpoint_layers(model)]
    selector = CoresetSelector(model, REUSE, SIZES)
    pool = pool_of_two()
    selector.take(pool, selector.select(pool, SOURCES))
    assert [layer._gradient_checkpointing_func for _, layer in checkpoint_layers(model)] != functions
    selector.model = trainable()
    assert [layer._gradient_checkpointing_func for _, layer in checkpoint_layers(model)] == functions


def test_left_padding_is_refused() -> None:
    selector = CoresetSelector(trainable(), REUSE, SIZES)
    pool = [ragged_batch([9, 4, 7, 12], side="left"), ragged_batch([5, 14, 6, 3], side="left")]
    with pytest.raises(ConfigError, match=r"padded on the left.*tokenizer.padding_side"):
        selector.select(pool, SOURCES)


def test_models_that_are_refused() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ConfigError, match=r"rope_type='dynamic' depends on the longest row"):
        CoresetSelector(tiny_model(rope_parameters=rope), REUSE, SIZES)
    with pytest.raises(ConfigError, match=r"output_router_logits=True"):
        CoresetSelector(build_architecture("mixtral", output_router_logits=True), REUSE, SIZES)
    with pytest.raises(UnsupportedModelError, match=r"GradientCheckpointingLayer; .* has none"):
        CoresetSelector(build_architecture("openai-gpt"), REUSE, SIZES)
    with pytest.raises(UnsupportedModelError, match=r"not \(rows, tokens, size\)"):
        run_step(ready(build_architecture("gemma3n_text")), REUSE)


def test_compiled_models_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"do not compile the model"):
        CoresetSelector(torch.compile(tiny_model(), backend="eager"), REUSE, SIZES)  # type: ignore[arg-type]
