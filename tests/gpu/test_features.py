"""Features of the last value projection compared with one backward per row, in the number formats of training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from tests.gpu.support import DEVICE, lowest_cosine, on, one_backward_a_row, ragged_batch, relative_error, tiny_model

from colm.features.exact import value_gradients

pytestmark = pytest.mark.gpu

LENGTHS = [13, 5, 24, 2, 9, 17]


class Format(NamedTuple):
    weights: torch.dtype
    autocast: torch.dtype | None
    scale: float  # of the loss, as a GradScaler has it
    cosine: float  # of each row's feature with the row's gradient in float64, at least


FORMATS = {
    "float32": Format(torch.float32, None, 1.0, 1 - 1e-6),
    "bfloat16 weights": Format(torch.bfloat16, None, 1.0, 0.99),
    "bfloat16 autocast": Format(torch.float32, torch.bfloat16, 1.0, 0.99),
    # A GradScaler begins at 2**16 and halves it until no gradient is above the largest float16 number, 65504.
    "float16 autocast, scaled": Format(torch.float32, torch.float16, 2.0**12, 0.999),
}
"""8 bits of a number in bfloat16 make a relative error of 4e-3, 11 in float16 one of 5e-4, in each of some 30 products
and sums one after the other, at random: errors of 2e-2 and 3e-3, and a cosine that lacks half their square. A row of
two tokens, whose gradient is a difference, may be several times as far."""


@pytest.mark.parametrize("kind", ["full", "lora", "fused", "fused lora"])
@pytest.mark.parametrize("name", FORMATS)
def test_features_are_gradients(name: str, kind: str, measured: Callable[..., None]) -> None:
    form = FORMATS[name]
    model = tiny_model(lora="lora" in kind, fused="fused" in kind)
    batch = ragged_batch(LENGTHS)
    exact = one_backward_a_row(model.to(torch.float64), batch, context=nullcontext)
    model = model.to(torch.float32).to(DEVICE, form.weights)
    batch = on(DEVICE, batch)
    context: Callable[[], Any] = nullcontext
    if form.autocast is not None:
        context = partial(torch.autocast, DEVICE.type, dtype=form.autocast)
    if form.weights is torch.float32 and form.autocast is None:
        assert torch.get_float32_matmul_precision() == "highest"  # no TF32
    theirs = one_backward_a_row(model, batch, context=context, scale=form.scale)
    with context():
        found = value_gradients(model, batch)
    assert found.dtype == torch.float32
    error, of_autograd = relative_error(found, exact), relative_error(theirs, exact)
    cosine = lowest_cosine(found, exact)
    measured(
        error=error,
        error_of_autograd=of_autograd,
        error_to_autograd=relative_error(found, theirs),
        distance_of_cosine_from_1=1 - cosine,
    )
    if name == "float32":
        assert relative_error(found, theirs) < 1e-5  # sums of float32 in another order
    # As near to the truth as what autograd gives in the same format; kernels round at other places.
    assert error < 2 * of_autograd + 1e-5
    assert cosine > form.cosine


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_step_with_a_grad_scaler(lora: bool, measured: Callable[..., None]) -> None:
    """The selection pass between scaled steps neither sees the scale nor disturbs it."""
    from colm import CoresetSelector, SelectionConfig, example_mean

    model = tiny_model(lora=lora).to(DEVICE)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10)
    selector = CoresetSelector(model, SelectionConfig(), {"a": 10}, optimizer=optimizer)
    losses = []
    for _ in range(6):
        batch = on(DEVICE, ragged_batch(LENGTHS, seed=1))
        with torch.autocast(DEVICE.type, dtype=torch.float16):
            coreset = selector.select(batch, ["a"] * len(LENGTHS))
            (kept,) = selector.take(batch, coreset)
            logits = model(input_ids=kept["input_ids"], attention_mask=kept["attention_mask"]).logits
            loss = example_mean(logits, kept["labels"])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        record = selector.commit()
        assert record.nonfinite == 0
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert scaler.get_scale() == 2.0**10
    measured(first_loss=losses[0], last_loss=losses[-1])
