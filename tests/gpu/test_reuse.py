"""Training from the selection pass's forward gives the same weights as training without it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from tests.gpu.support import DEVICE, SIZES, on, pool_of, tiny_model
from torch import Tensor

from colm import CoresetSelector, SelectionConfig, example_mean

pytestmark = pytest.mark.gpu

STEPS = 3


def train(config: SelectionConfig, *, lora: bool, bf16: bool) -> tuple[list[list[int]], Tensor, Tensor]:
    """Train some steps of SGD, and return the rows and the trained weights before and after."""
    model = tiny_model(lora=lora).to(DEVICE).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if lora:
        model.enable_input_require_grads()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = torch.cat([p.detach().flatten() for p in trained]).clone()
    optimizer = torch.optim.SGD(trained, lr=0.02)
    selector = CoresetSelector(model, config, SIZES)
    rows = []
    for step in range(STEPS):
        batches, sources = pool_of(step)
        pool = on(DEVICE, batches)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16) if bf16 else nullcontext():
            coreset = selector.select(pool, sources)
            kept = selector.take(pool, coreset)
            for batch in kept:
                inputs = {key: value for key, value in batch.items() if key != "labels"}
                logits = model(**inputs, use_cache=False).logits
                example_mean(logits, batch["labels"], num_examples=len(coreset.indices)).backward()
        optimizer.step()
        optimizer.zero_grad()
        selector.commit()
        rows.append(coreset.indices.tolist())
    return rows, before, torch.cat([p.detach().flatten() for p in trained])


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("offload", [False, True], ids=["kept", "offloaded"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16 autocast"])
def test_weights_are_those_without_reuse(lora: bool, offload: bool, bf16: bool, measured: Callable[..., None]) -> None:
    config = SelectionConfig(features="exact", adam=False, coordinates=100)
    reused = SelectionConfig(features="exact", adam=False, coordinates=100, reuse_forward=True, reuse_offload=offload)
    rows, before, plain = train(config, lora=lora, bf16=bf16)
    our_rows, _, ours = train(reused, lora=lora, bf16=bf16)
    assert our_rows[0] == rows[0]
    if not bf16:
        assert our_rows == rows
    elif our_rows != rows:
        pytest.skip("rounding of bfloat16 gave other rows in a later step, so the weights do not compare")
    error = float((ours - plain).norm() / (plain - before).norm())
    measured(error_of_the_change=error)
    # Of the change in three steps: float32 rounds products of other shapes otherwise; bfloat16 keeps 8 bits of each.
    assert error < (5e-2 if bf16 else 1e-4)
