"""The Trainer in bfloat16, and on a 4-bit base model."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.gpu.support import (
    DEVICE,
    adapted,
    lowest_cosine,
    on,
    one_backward_a_row,
    ragged_batch,
    relative_error,
    tiny_model,
)
from tests.gpu.training import STEPS, losses, make_trainer, selection_lines, weights

from colm import SelectionConfig
from colm.features.exact import value_gradients

pytestmark = pytest.mark.gpu


def check_run(trainer: Any, folder: Path) -> None:
    lines = selection_lines(folder)
    assert [line["step"] for line in lines] == list(range(STEPS))
    for line in lines:
        assert line["kept_count"] == 6
        assert line["nonfinite"] == 0
        assert line["match"] is not None
        assert math.isfinite(line["match"])
    assert len(losses(trainer)) == STEPS
    assert all(math.isfinite(loss) for loss in losses(trainer))


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("reuse", [False, True], ids=["plain", "reuse_forward"])
def test_bfloat16_autocast_with_float32_weights(
    tmp_path: Path, lora: bool, reuse: bool, measured: Callable[..., None]
) -> None:
    model = tiny_model(layers=2, lora=lora)
    trainer = make_trainer(
        tmp_path,
        model=model,
        selection=SelectionConfig(keep=0.5, reuse_forward=reuse, reuse_offload=reuse),
        bf16=True,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    before = weights(trainer)
    trainer.train()
    check_run(trainer, tmp_path)
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert any(not torch.equal(a, b) for a, b in zip(weights(trainer), before, strict=True))
    measured(first_loss=losses(trainer)[0], last_loss=losses(trainer)[-1])


def test_bfloat16_weights(tmp_path: Path, measured: Callable[..., None]) -> None:
    trainer = make_trainer(tmp_path, model=tiny_model(layers=2).to(torch.bfloat16), bf16=True)
    trainer.train()
    check_run(trainer, tmp_path)
    measured(first_loss=losses(trainer)[0], last_loss=losses(trainer)[-1])


@pytest.mark.skipif(DEVICE.type == "cpu", reason="4-bit kernels are CUDA's")
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_lora_on_a_base_of_4_bits(tmp_path: Path, measured: Callable[..., None]) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny_model(hidden_size=128, intermediate_size=128).save_pretrained(tmp_path / "base")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=config, dtype=torch.float32, device_map={"": 0}
    )
    model = adapted(base)
    batch = on(DEVICE, ragged_batch([13, 5, 24, 9]))
    expected = one_backward_a_row(model, batch, context=nullcontext)
    stored = {name: parameter.detach().clone() for name, parameter in base.named_parameters() if "lora" not in name}
    found = value_gradients(model, batch)
    error = relative_error(found, expected)
    measured(error=error, distance_of_cosine_from_1=1 - lowest_cosine(found, expected))
    assert error < 1e-3  # the base is the same on both sides; its products are float32's, in another order
    assert all(torch.equal(parameter, stored[n]) for n, parameter in base.named_parameters() if n in stored)
    trainer = make_trainer(tmp_path / "run", model=model, bf16=True)
    trainer.train()
    check_run(trainer, tmp_path / "run")
