"""Training from the selection pass's forward: the same picks and gradients, fewer forwards, no more memory."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tests.support.architectures import build_architecture
from tests.support.models import ragged_batch
from tests.support.reuse_steps import (
    REUSE,
    SIZES,
    SOURCES,
    Counted,
    adapted,
    assert_same,
    pool_of_two,
    ready,
    run_step,
    trainable,
)

from colm import ConfigError, CoresetSelector, SelectionConfig, example_mean
from colm.reuse.checks import checkpoint_layers
from colm.step.pool import Pool


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("offload", [False, True])
def test_same_picks_and_gradients(lora: bool, offload: bool) -> None:
    model = trainable(lora=lora)
    plain = run_step(model, SelectionConfig(keep=0.5))
    assert_same(run_step(model, SelectionConfig(keep=0.5, reuse_forward=True, reuse_offload=offload)), plain)


@pytest.mark.parametrize("features", ["exact", "mean_hidden", "last_hidden", "loss", "gradient_norm"])
def test_every_feature_with_a_plain_forward(features: Any) -> None:
    model = trainable()
    plain = run_step(model, SelectionConfig(features=features, keep=0.5, pass_tokens=20))
    assert_same(
        run_step(model, SelectionConfig(features=features, keep=0.5, pass_tokens=20, reuse_forward=True)), plain
    )


ARCHITECTURES = ["llama", "qwen2", "qwen3", "gpt_neox", "phi", "phi3", "gemma2", "mistral", "olmo2", "gpt2", "falcon",
    "stablelm", "mixtral", "granite", "opt", "cohere", "starcoder2", "lfm2", "smollm3"]  # fmt: skip


NO_LORA = ("mixtral",)
"""PEFT warns about the experts of these models."""


@pytest.mark.parametrize(
    ("name", "lora"), [(n, lora) for n in ARCHITECTURES for lora in (False, True) if n not in NO_LORA or not lora]
)
def test_architectures(name: str, lora: bool) -> None:
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "dropout": 0.0, "attention_dropout": 0.0,
        "hidden_dropout": 0.0, "residual_dropout": 0.0, "embedding_dropout": 0.0}  # fmt: skip
    model = build_architecture(name, **without_dropout(name, off))
    model = ready(adapted(model, fan_in_fan_out=name == "gpt2") if lora else model)
    plain = run_step(model, SelectionConfig(keep=0.5))
    assert_same(run_step(model, SelectionConfig(keep=0.5, reuse_forward=True)), plain)


def without_dropout(name: str, rates: dict[str, float]) -> dict[str, float]:
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[name]()
    return {key: value for key, value in rates.items() if hasattr(config, key)}


def test_layers_run_once_for_the_pool_and_once_more_for_the_kept_rows() -> None:
    model = trainable()
    counted = Counted(model)
    kept, _ = run_step(model, SelectionConfig(keep=0.5))
    layers = [name for name, _ in checkpoint_layers(model)]
    ordinary, counted.rows = counted.rows, {}
    run_step(model, SelectionConfig(keep=0.5, reuse_forward=True))
    ours = counted.rows
    small = sum(SOURCES[row] == "b" for row in kept)
    assert small == 1
    assert ordinary == dict.fromkeys(layers, (len(SOURCES) - small) + 2 * len(kept))
    assert ours == dict.fromkeys(layers, len(SOURCES) + len(kept))


def test_unkept_rows_are_dropped_and_each_layer_holds_its_input_only() -> None:
    model = trainable()
    selector = CoresetSelector(model, SelectionConfig(keep=0.5, reuse_forward=True), SIZES)
    pool = pool_of_two()
    coreset = selector.select(pool, SOURCES)
    reuse = selector._reuse
    assert reuse is not None
    recording = reuse._recording
    assert recording is not None
    kept = selector.take(pool, coreset)
    assert recording.states == []
    held = [state.numel() for _, states in reuse._waiting for state in states]
    levels = 1 + len(reuse.layers)
    assert sum(held) == levels * sum(batch["input_ids"].numel() for batch in kept) * 32

    saved: list[torch.Tensor] = []
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    batch = kept[0]
    states = {state.untyped_storage().data_ptr() for state in reuse._waiting[0][1]}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    ours = {tensor.untyped_storage().data_ptr() for tensor in saved}
    assert len(states & ours) == levels  # the layers' inputs, and what the last norm reads
    assert logits.requires_grad
    selector.commit()
    assert reuse._waiting == []


def test_a_layer_s_states_are_freed_before_those_of_the_next_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trainable()
    selector = CoresetSelector(model, REUSE, SIZES)
    pool = pool_of_two()
    coreset = selector.select(pool, SOURCES)
    assert selector._reuse is not None
    recording = selector._reuse._recording
    assert recording is not None
    freed: list[int] = []
    empty = torch.empty

    def gathered(*args: Any, **kwargs: Any) -> torch.Tensor:
        if recording.states:
            freed.append(sum(state.untyped_storage().nbytes() == 0 for state in recording.states[0]))
        return empty(*args, **kwargs)

    monkeypatch.setattr("colm.reuse.recording.torch.empty", gathered)
    kept = selector.take(pool, coreset)
    assert freed == [level for level in range(1 + len(selector._reuse.layers)) for _ in kept]
    selector.commit()


def test_the_pass_keeps_no_more_than_the_checkpointed_pool_in_one_micro_batch() -> None:
    model = trainable()
    selector = CoresetSelector(model, REUSE, SIZES)
    pool = pool_of_two()
    selector.select(pool, SOURCES)
    assert selector._reuse is not None
    recording = selector._reuse._recording
    assert recording is not None
    ours = sum(state.numel() * state.element_size() for states in recording.states for state in states)
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    whole = Pool(pool).collate(range(len(SOURCES)))
    weights = [parameter.untyped_storage().data_ptr() for parameter in model.parameters()]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=whole["input_ids"], attention_mask=whole["attention_mask"], use_cache=False)
    for weight in weights:
        saved.pop(weight, None)
    assert output.logits is not None
    assert 0 < ours <= sum(saved.values())


def test_memory_of_training_is_that_of_the_ordinary_checkpoint() -> None:
    model = trainable()

    def bytes_saved(config: SelectionConfig) -> int:
        selector = CoresetSelector(model, config, SIZES)
        pool = pool_of_two()
        batch = selector.take(pool, selector.select(pool, SOURCES))[0]
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        assert output.logits is not None
        return sum(storages.values())

    assert bytes_saved(SelectionConfig(reuse_forward=True)) <= bytes_saved(SelectionConfig())


def test_autocast_of_the_pass_is_that_of_training() -> None:
    def around() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    model = trainable()
    plain = run_step(model, SelectionConfig(keep=0.5), around=around)
    assert_same(run_step(model, SelectionConfig(keep=0.5, reuse_forward=True), around=around), plain, tolerance=2e-2)

    pool = pool_of_two()
    selector = CoresetSelector(model, SelectionConfig(reuse_forward=True), SIZES)
    batch = selector.take(pool, selector.select(pool, SOURCES))[0]
    with (
        around(),
        pytest.raises(ConfigError, match="ran in no autocast and training runs in autocast to torch.bfloat16"),
    ):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    selector.reset()


def test_under_autocast_the_second_run_may_take_another_kernel() -> None:
    """As on a GPU, if only one of the two has padding: residuals are in float32, but products round to bfloat16."""
    model, pool = trainable(), pool_of_two()
    selector = CoresetSelector(model, REUSE, SIZES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch = selector.take(pool, selector.select(pool, SOURCES))[0]
        model.set_attn_implementation("eager")
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    example_mean(logits, batch["labels"]).backward()
    assert model.get_input_embeddings().weight.grad is not None
    selector.commit()


@pytest.mark.parametrize("config", [{"warmup_steps": 1}, {"features": "exact", "keep": 1.0}, {"balance": 0.5}])
def test_steps_of_other_kinds(config: dict[str, Any]) -> None:
    """A step without a selection pass, a step that keeps all rows, and a step with weights."""
    model = trainable()
    plain = run_step(model, SelectionConfig(**config))
    assert_same(run_step(model, SelectionConfig(**config, reuse_forward=True)), plain)


def test_a_forward_of_other_rows_or_other_weights_is_ordinary(caplog: pytest.LogCaptureFixture) -> None:
    model = trainable()
    pool = pool_of_two()
    selector = CoresetSelector(model, SelectionConfig(reuse_forward=True), SIZES)
    functions = [layer._gradient_checkpointing_func for _, layer in checkpoint_layers(model)]
    kept = selector.take(pool, selector.select(pool, SOURCES))
    assert selector._reuse is not None
    model(input_ids=pool[0]["input_ids"], attention_mask=pool[0]["attention_mask"], use_cache=False)
    model(input_ids=kept[0]["input_ids"], use_cache=False)  # without the mask that the pass had
    with torch.no_grad():
        model(input_ids=kept[0]["input_ids"], attention_mask=kept[0]["attention_mask"], use_cache=False)
    assert len(selector._reuse._waiting) == 2
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    model(input_ids=kept[0]["input_ids"], attention_mask=kept[0]["attention_mask"], use_cache=False)
    assert len(selector._reuse._waiting) == 2
    with caplog.at_level(logging.WARNING):
        selector.commit()
    assert "reuse_forward=True saved nothing" in caplog.text
    assert [layer._gradient_checkpointing_func for _, layer in checkpoint_layers(model)] == functions


def test_a_gathered_weight_in_the_place_of_a_split_one_is_no_change() -> None:
    """As with FSDP2, which puts the split weight back after the step."""
    model = trainable()
    pool = pool_of_two()
    selector = CoresetSelector(model, SelectionConfig(reuse_forward=True), SIZES)
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)  # as an optimizer's step counts as a write
    kept = selector.take(pool, selector.select(pool, SOURCES))
    assert selector._reuse is not None
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model(input_ids=kept[0]["input_ids"], attention_mask=kept[0]["attention_mask"], use_cache=False)
    assert len(selector._reuse._waiting) == 1


def test_several_steps_with_an_optimizer() -> None:
    losses = {}
    for reuse in (False, True):
        model = trainable()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        selector = CoresetSelector(model, SelectionConfig(reuse_forward=reuse), SIZES, optimizer=optimizer)
        losses[reuse] = []
        for step in range(3):
            pool = [ragged_batch([9, 4, 7, 12], seed=step), ragged_batch([5, 14, 6, 3], seed=10 + step)]
            coreset = selector.select(pool, SOURCES)
            for batch in selector.take(pool, coreset):
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                loss = example_mean(logits, batch["labels"], num_examples=len(coreset.indices))
                loss.backward()
                losses[reuse].append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
            selector.commit()
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
