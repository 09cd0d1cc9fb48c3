"""Hooks, and modules that differ in train mode, take effect as without `reuse_forward`, or are rejected."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from tests.support.models import tiny_model
from tests.support.reuse_steps import (
    REUSE,
    SIZES,
    SOURCES,
    adapted,
    assert_same,
    pool_of_two,
    ready,
    run_step,
    trainable,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from colm import CoresetSelector, SelectionConfig, UnsupportedModelError, example_mean
from colm.reuse.checks import checkpoint_layers

Change = Callable[[Any], Any]


class Scaled(nn.Module):
    """Scales a weight, optionally only in train mode."""

    def __init__(self, *, always: bool) -> None:
        super().__init__()
        self.always = always

    def forward(self, weight: Tensor) -> Tensor:
        return weight * 1.1 if self.always or self.training else weight


def layer(model: Any, number: int = 1) -> Any:
    return checkpoint_layers(model)[number][1]


def linear(model: Any) -> Any:
    """Return the last map of the second layer's feed-forward, LoRA's base if it has one."""
    found = layer(model).mlp.down_proj
    return getattr(found, "base_layer", found)


def inner(model: Any) -> Any:
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model


def noise(size: float = 1.0) -> Callable[..., Tensor | None]:
    """Return a forward hook that adds noise in training, relative to its output."""

    def add(module: Any, args: Any, output: Tensor) -> Tensor | None:
        return output + torch.randn_like(output) * size * output.std().detach() if module.training else None

    return add


def times(factor: float) -> Callable[..., Any]:
    return lambda module, args, output: output * factor


def write(module: Any, args: Any, output: Tensor) -> None:
    if module.training:
        output.data.mul_(1.5)
        output.add_(0.0)


def other_tokens(module: Any, args: Any) -> Any:
    return (torch.where(torch.rand(args[0].shape) < 0.5, 5, args[0]),) if module.training else None


def hook_weights(model: Any) -> None:
    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_hook(lambda gradient: gradient * 2)


def doubled(module: Any, gradients: Any, *_: Any) -> Any:
    return tuple(None if gradient is None else gradient * 2 for gradient in gradients)


APPLIED: dict[str, Change] = {
    "a factor on the embeddings": lambda m: m.get_input_embeddings().register_forward_hook(times(1.3)),
    "a sum behind the last layer": lambda m: layer(m, 2).register_forward_hook(
        lambda module, args, output: output + 1.0 if module.training else None
    ),
    "a factor behind the last norm": lambda m: inner(m).norm.register_forward_hook(times(1.5)),
    "a factor on a product": lambda m: layer(m).mlp.down_proj.register_forward_hook(times(2.0)),
    "gradients of weights": hook_weights,
    "gradients at a layer's input": lambda m: layer(m).register_full_backward_hook(doubled),
    "gradients at a layer's output": lambda m: layer(m).register_full_backward_pre_hook(doubled),
    "gradients within a layer": lambda m: layer(m).mlp.register_full_backward_hook(doubled),
    "a parametrized weight": lambda m: parametrize.register_parametrization(linear(m), "weight", Scaled(always=True)),
    "a weight with a spectral norm": lambda m: spectral_norm(linear(m)),
    "parametrized embeddings": lambda m: parametrize.register_parametrization(
        m.get_input_embeddings(), "weight", Scaled(always=True)
    ),
}

REFUSED: dict[str, tuple[Change, str]] = {
    "noise on the embeddings": (
        lambda m: m.get_input_embeddings().register_forward_hook(noise()),
        "layers.0, the first layer, receives different values in training",
    ),
    "a little noise on the embeddings": (
        lambda m: m.get_input_embeddings().register_forward_hook(noise(1e-4)),
        "layers.0, the first layer, receives different values in training",
    ),
    "other tokens": (
        lambda m: m.get_input_embeddings().register_forward_pre_hook(other_tokens),
        "layers.0, the first layer, receives different values in training",
    ),
    "embeddings that differ in training": (
        lambda m: parametrize.register_parametrization(m.get_input_embeddings(), "weight", Scaled(always=False)),
        "layers.0, the first layer, receives different values in training",
    ),
    "noise behind the first layer": (
        lambda m: layer(m, 0).register_forward_hook(noise()),
        "layers.1 receives different values in training than the previous layer returns: a hook on that layer",
    ),
    "values that a hook writes": (
        lambda m: layer(m, 0).register_forward_hook(write),
        "layers.1 receives different values",
    ),
    "a factor behind a layer": (
        lambda m: layer(m, 0).register_forward_hook(times(1.2)),
        "layers.1 receives different values",
    ),
    "a factor before a layer": (
        lambda m: layer(m).register_forward_pre_hook(lambda module, args: (args[0] * 1.2, *args[1:])),
        "layers.1 does not read the previous layer's output",
    ),
    "noise within a layer": (
        lambda m: layer(m).mlp.down_proj.register_forward_hook(noise()),
        "layers.1 returns different outputs in training and in the selection pass",
    ),
    "a weight that differs in training": (
        lambda m: parametrize.register_parametrization(linear(m), "weight", Scaled(always=False)),
        "layers.1 returns different outputs in training and in the selection pass",
    ),
    "positions that differ in training": (
        lambda m: inner(m).rotary_emb.register_forward_hook(
            lambda module, args, output: (output[0] * 0.5, output[1]) if module.training else None
        ),
        "returns different outputs in training and in the selection pass",
    ),
}


WITH_LORA = {"gradients of weights", "a parametrized weight", "other tokens", "values that a hook writes"}


def step(change: Change, config: SelectionConfig, *, lora: bool) -> Any:
    model = adapted(tiny_model()) if lora else tiny_model()
    torch.manual_seed(5)
    change(model)
    ready(model)
    torch.manual_seed(3)
    return run_step(model, config)


@cache
def untouched(lora: bool) -> Any:
    return step(lambda model: None, SelectionConfig(), lora=lora)


@pytest.mark.parametrize(("case", "lora"), [(case, case in WITH_LORA) for case in APPLIED])
def test_applied(case: str, lora: bool) -> None:
    plain = step(APPLIED[case], SelectionConfig(), lora=lora)
    assert_same(step(APPLIED[case], REUSE, lora=lora), plain, 1e-3)
    with pytest.raises(AssertionError):  # otherwise the case tests nothing
        assert_same(plain, untouched(lora), 1e-3)


@pytest.mark.parametrize(("case", "lora"), [(case, case in WITH_LORA) for case in REFUSED])
def test_refused(case: str, lora: bool) -> None:
    change, message = REFUSED[case]
    with pytest.raises(UnsupportedModelError, match=message):
        step(change, REUSE, lora=lora)


def two_steps(model: Any, change: Change) -> None:
    """Train two steps, and change the model between them."""
    selector = CoresetSelector(model, REUSE, SIZES)
    for number in range(2):
        if number == 1:
            change(model)
        pool = pool_of_two()
        for batch in selector.take(pool, selector.select(pool, SOURCES)):
            labels = batch.pop("labels")
            example_mean(model(**batch, use_cache=False).logits, labels, num_examples=4).backward()
        selector.commit()


def test_a_hook_inside_a_layer_is_checked_in_every_step(caplog: pytest.LogCaptureFixture) -> None:
    active: list[float] = []
    model = trainable()
    layer(model).mlp.down_proj.register_forward_hook(
        lambda module, args, output: output + active[0] if active and module.training else None
    )
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(UnsupportedModelError, match="layers.1 returns different outputs"),
    ):
        two_steps(model, lambda _: active.append(1.0))
    assert caplog.text.count("model.layers.1.mlp.down_proj has a hook") == 1


@pytest.mark.parametrize("place", ["embeddings", "layer"])
def test_a_hook_added_later_is_found(place: str) -> None:
    def add(model: Any) -> None:
        (model.get_input_embeddings() if place == "embeddings" else layer(model)).register_forward_hook(noise())

    with pytest.raises(UnsupportedModelError, match="receives different values in training"):
        two_steps(trainable(), add)


def test_observers_see_what_the_layers_compute() -> None:
    seen: list[float] = []
    model = trainable()
    layer(model).mlp.down_proj.register_forward_hook(
        lambda module, args, output: seen.append(float(output.detach().abs().sum()))
    )
    two_steps(model, lambda _: seen.clear())
    assert seen
    assert all(seen)


def test_the_hooks_of_an_engine_change_nothing_that_is_checked(caplog: pytest.LogCaptureFixture) -> None:
    """FSDP2 has hooks on every layer; each check would wait for a GPU."""

    def unshard(module: nn.Module, args: Any) -> None:
        pass

    unshard.__module__ = "torch.distributed.fsdp._fully_shard._fsdp_state"
    model = trainable()
    for module in (layer(model), layer(model).mlp):
        module.register_forward_pre_hook(unshard)
    selector = CoresetSelector(model, REUSE, SIZES)
    with caplog.at_level(logging.WARNING):
        selector.select(pool_of_two(), SOURCES)
    assert selector._reuse is not None
    assert selector._reuse._hooked == set()
    assert "has a hook" not in caplog.text
    selector.reset()
