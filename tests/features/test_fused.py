"""The head in a fused kernel: what the kernel is given, and when chunks take its place.

The kernel itself needs a GPU (tests/gpu/test_fused.py); here a slow one with its signature stands in.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.support.architectures import build_architecture
from tests.support.models import ragged_batch, tiny_model, with_lora
from tests.support.trainers import coreset_trainer, weights
from torch import Tensor, nn

from colm import SelectionConfig
from colm.errors import ConfigError, UnsupportedModelError
from colm.features import fused
from colm.features.head import FINISHES
from colm.lean import LeanHead, lean_head
from colm.losses import example_losses

Call = dict[str, Any]


def losses_of(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """The kernel in plain operations."""
    logits = nn.functional.linear(hidden, weight, bias)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Stand in for the kernel, and return what it was given."""
    found: list[Call] = []

    def kernel(*args: Any) -> Tensor:
        found.append(dict(zip(("hidden", "weight", "targets", "bias", "softcap"), args, strict=True)))
        return losses_of(*args)

    install(monkeypatch, kernel)
    return found


def install(monkeypatch: pytest.MonkeyPatch, kernel: Any) -> None:
    monkeypatch.setattr(fused, "load_kernel", lambda device: kernel)
    for module in ("colm.lean", "colm.trainers.hf"):
        monkeypatch.setattr(f"{module}.require_fused", lambda: None)


def gradients(model: nn.Module, losses: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (losses * torch.linspace(0.5, 1.5, len(losses))).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


MODELS = {
    "tied": lambda: tiny_model(tie_word_embeddings=True),
    "bias": lambda: tiny_model("phi"),
    "lora": lambda: with_lora(tiny_model()),
    "saved whole": lambda: get_peft_model(
        tiny_model(), LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["lm_head"])
    ),
    "cap": lambda: build_architecture("gemma2", final_logit_softcapping=2.0),
    "scale": lambda: build_architecture("granite", logits_scaling=3.0),
}


@pytest.mark.parametrize("kind", MODELS)
def test_losses_and_gradients_are_those_of_all_logits(kind: str, calls: list[Call]) -> None:
    model, batch = MODELS[kind](), ragged_batch([5, 9, 3])
    head = LeanHead(model, fused=True)
    assert head.fused
    calls.clear()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    expected, found = example_losses(model(**inputs).logits, batch["labels"]), head(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    wanted, ours = gradients(model, expected), gradients(model, found)
    assert set(wanted) == set(ours)
    for name, gradient in wanted.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    (call,) = calls
    labels = batch["labels"][:, 1:]
    assert call["targets"].tolist() == labels[labels != -100].tolist()  # shifted, and none of them ignored
    assert call["hidden"].shape == (len(call["targets"]), call["weight"].shape[1])
    assert call["hidden"].is_contiguous()
    assert (call["bias"] is None) == (kind != "bias")
    assert call["softcap"] == (2.0 if kind == "cap" else None)
    assert call["weight"].requires_grad == (kind != "lora")


def test_under_autocast_the_kernel_runs_in_the_precision_of_the_forward(calls: list[Call]) -> None:
    model, batch = tiny_model(), ragged_batch([5, 9, 3])
    with torch.autocast("cpu", torch.bfloat16):
        head = LeanHead(model, fused=True)
        assert head.fused
        losses = head(model, batch)
    torch.testing.assert_close(losses, head(model, batch), rtol=3e-2, atol=3e-2)
    assert losses.dtype == torch.float32
    assert calls[-1]["weight"].dtype == torch.float32  # cast by autocast, as in the head


def wrong_for_weights(*args: Any) -> Tensor:
    """A kernel whose backward is right only if all tokens weigh the same, as Liger's was before 0.8.2."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, losses: Tensor) -> Tensor:
            return losses.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient[:1].expand_as(gradient)

    found: Tensor = Wrong.apply(losses_of(*args))
    return found


@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (wrong_for_weights, "the kernel's gradient differ from those of the logits"),
        (lambda *args: losses_of(*args) * 1.1, "the kernel's losses differ from those of the logits"),
    ],
    ids=["gradient", "losses"],
)
def test_a_kernel_that_is_wrong_is_not_used(
    kernel: Any, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "colm")
    install(monkeypatch, kernel)
    head = lean_head(tiny_model(), SelectionConfig(train_head="fused", head_chunk_tokens=3))
    assert head is not None
    assert not head.fused
    assert f"labeled positions only, in chunks, not in the fused kernel (experimental): {why}." in caplog.text


@pytest.mark.parametrize("kind", ["lora", "patched", "hooked", "subclass", "two caps"])
def test_a_head_that_is_not_a_plain_linear_map_runs_in_chunks(
    kind: str, calls: list[Call], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "colm")
    model = tiny_model()
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))
    elif kind == "patched":
        model.lm_head.forward = model.lm_head.forward  # as accelerate does to move weights
    elif kind == "hooked":
        model.lm_head.register_forward_pre_hook(lambda module, args: args)
    elif kind == "subclass":
        model.lm_head.__class__ = type("Quantized", (nn.Linear,), {})
    else:
        model = build_architecture("gemma2", final_logit_softcapping=1e4, logits_soft_cap=1e4)
    head, batch = lean_head(model, SelectionConfig(train_head="fused")), ragged_batch([5, 9])
    assert head is not None
    assert not head.fused
    assert caplog.text.count("in chunks, not in the fused kernel") == 1
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    torch.testing.assert_close(head(model, batch), example_losses(model(**inputs).logits, batch["labels"]))
    assert calls == []


def test_what_the_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"needs liger-kernel>=0.8.2: pip install 'colm\[fused\]'"):
        fused.require_fused()
    monkeypatch.setattr(fused, "version", lambda name: "0.8.1")
    with pytest.raises(ConfigError, match="0.8.1 is installed, whose gradient is wrong"):
        fused.require_fused()
    monkeypatch.setattr(fused, "version", lambda name: "0.10.0.dev1")
    with pytest.raises(ConfigError, match="needs a CUDA GPU, and torch finds none; set train_head to 'chunked'"):
        fused.require_fused()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    fused.require_fused()
    with pytest.raises(UnsupportedModelError, match="its weight is on the cpu"):
        fused.load_kernel(torch.device("cpu"))


def test_a_trainer_says_so_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train_head='fused' needs liger-kernel"):
        coreset_trainer(tmp_path, selection=SelectionConfig(train_head="fused"), train_dataset=[])


def test_a_run_with_the_kernel(tmp_path: Path, calls: list[Call], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "colm")
    found = []
    for head in ("chunked", "fused"):
        trainer = coreset_trainer(tmp_path / head, selection=SelectionConfig(train_head=head), args={"max_steps": 2})
        trainer.train()
        found.append(weights(trainer))
    assert len(calls) > 2
    assert "on labeled positions only, in the fused kernel (experimental)." in caplog.text
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_all_that_models_do_to_logits_is_known() -> None:
    assert {*fused.CAPS, *fused.SCALES} == set(FINISHES)
