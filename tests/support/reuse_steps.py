"""One step with and without `reuse_forward`, for the tests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from tests.support.models import ragged_batch, tiny_model
from torch import nn

from colm import CoresetSelector, SelectionConfig, example_mean
from colm.reuse.checks import checkpoint_layers

SIZES = {"a": 1000, "b": 10, "c": 1000}
SOURCES = ["a", "a", "c", "b", "a", "c", "a", "a"]

REUSE = SelectionConfig(reuse_forward=True)

Gradients = dict[str, torch.Tensor]


def adapted(model: Any, **changes: Any) -> Any:
    """Add LoRA with a nonzero B to the model."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **changes))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def trainable(family: str = "llama", *, lora: bool = False, **changes: Any) -> Any:
    return ready(adapted(tiny_model(family, **changes)) if lora else tiny_model(family, **changes))


def ready(model: Any) -> Any:
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    return model.train()


def pool_of_two() -> list[dict[str, Any]]:
    """Return eight rows in two micro-batches, whose widths differ from those of the pass and of training."""
    return [ragged_batch([9, 4, 7, 12], seed=1, width=15), ragged_batch([5, 14, 6, 3], seed=2)]


def run_step(
    model: Any, config: SelectionConfig, *, pool: Any = None, around: Callable[[], Any] = nullcontext
) -> tuple[list[int], Gradients]:
    """Return the picks of one step and the gradients of training on them."""
    pool = pool or pool_of_two()
    selector = CoresetSelector(model, config, SIZES)
    with around():
        coreset = selector.select(pool, SOURCES)
        kept = selector.take(pool, coreset)
    for batch in kept:
        with around():
            logits = model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False).logits
        example_mean(logits, batch["labels"], num_examples=len(coreset.indices)).backward()
    selector.commit()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return coreset.indices.tolist(), gradients


def assert_same(ours: tuple[list[int], Gradients], plain: tuple[list[int], Gradients], tolerance: float = 1e-4) -> None:
    assert ours[0] == plain[0]
    assert ours[1].keys() == plain[1].keys()
    size = max(float(gradient.abs().max()) for gradient in plain[1].values())
    assert size > 0
    for name, gradient in plain[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=tolerance, atol=tolerance * size, msg=name)


class Counted:
    """Counts the rows that each layer's feed-forward ran on, except for one-token probes."""

    def __init__(self, model: Any) -> None:
        self.rows: dict[str, int] = {}
        for name, layer in checkpoint_layers(model):
            # Before its forward: the second run of an ordinary checkpoint stops early within it.
            layer.mlp.register_forward_pre_hook(lambda module, args, name=name: self.count(name, args[0]))

    def count(self, name: str, hidden: torch.Tensor) -> None:
        if hidden.shape[1] > 1:
            self.rows[name] = self.rows.get(name, 0) + len(hidden)
