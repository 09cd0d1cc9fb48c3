"""Liger's kernels, of which only the fused loss is in the way. Fakes stand in for them: they need triton, and a GPU."""

from __future__ import annotations

import logging
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from tests.support.models import tiny_model
from tests.support.sft import sft_settings
from tests.support.trainers import arguments, collate, coreset_trainer, mixture, validation_rows, weights
from transformers.modeling_outputs import CausalLMOutputWithPast

from colm import CoresetSFTTrainer, SelectionConfig
from colm.errors import ConfigError
from colm.models import train_tiny_tokenizer
from colm.trainers.evaluation import SourceTrainer

ONE_LINE = "its fused loss stays off"


def fused_forward(
    self: Any,
    input_ids: Any = None,
    attention_mask: Any = None,
    labels: Any = None,
    use_cache: Any = None,
    skip_logits: bool | None = None,
    **kwargs: Any,
) -> CausalLMOutputWithPast:
    """As ``lce_forward`` of liger-kernel 0.8.5: in training with labels, a loss and no logits."""
    hidden = self.model(input_ids, attention_mask=attention_mask, use_cache=use_cache).last_hidden_state
    if skip_logits and labels is None:
        raise ValueError("skip_logits is True, but labels and shift_labels are None")
    skips = self.training and labels is not None if skip_logits is None else skip_logits
    logits = self.lm_head(hidden)
    loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
    return CausalLMOutputWithPast(loss=loss, logits=None if skips else logits)


def patch(model: Any, config: dict[str, bool] | None) -> None:
    """As transformers' ``apply_liger_kernel``; the kernels of the layers compute what the layers do."""
    if (config or {}).get("fused_linear_cross_entropy", True):
        model.forward = MethodType(fused_forward, model)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Install the fakes, and return the configurations that were applied."""
    applied: list[Any] = []

    def apply(model: Any, config: Any) -> None:
        applied.append(config)
        patch(model, config)

    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", apply)
    monkeypatch.setattr("colm.trainers.liger.is_liger_kernel_available", lambda: True)
    return applied


def run(folder: Path, *, loss: str = "example", patched: bool = False, head: str = "labeled", **args: Any) -> Any:
    model = tiny_model("llama", num_hidden_layers=2)
    if patched:
        patch(model, None)
    trainer = coreset_trainer(
        folder,
        model=model,
        selection=SelectionConfig(loss=loss, train_head=head),
        eval_dataset=mixture(8, seed=1).remove_columns("source"),
        args={"max_steps": 1, **args},
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("loss", "head"),
    [
        ("example", "labeled"),
        ("token", "all"),
        pytest.param("example", "all", marks=pytest.mark.slow),
        pytest.param("token", "labeled", marks=pytest.mark.slow),
    ],
)
def test_the_same_training_and_evaluation(
    tmp_path: Path, liger: list[Any], loss: str, head: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "colm")
    plain = run(tmp_path / "plain", loss=loss, head=head)
    assert ONE_LINE not in caplog.text
    config = {"rope": False}
    ours = run(tmp_path / "liger", loss=loss, head=head, use_liger_kernel=True, liger_kernel_config=config)
    assert caplog.text.count(ONE_LINE) == 1
    before = run(tmp_path / "patched", loss=loss, head=head, patched=True)
    assert liger == [{"rope": False, "fused_linear_cross_entropy": False}]
    assert ours.args.liger_kernel_config == config == {"rope": False}  # the user's
    assert ours.args.use_liger_kernel
    for other in (ours, before):
        for one, two in zip(weights(plain), weights(other), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
        assert other.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-5)


def test_a_patched_model_that_the_trainer_would_tell_to_skip_its_logits(tmp_path: Path, liger: list[Any]) -> None:
    off = {"fused_linear_cross_entropy": False}
    trainer = run(tmp_path, patched=True, use_liger_kernel=True, liger_kernel_config=off)
    assert liger == [off]
    assert trainer.evaluate()["eval_loss"] > 0


def test_losses_by_source(tmp_path: Path, liger: list[Any]) -> None:
    found = []
    for patched in (False, True):
        model = tiny_model("llama", num_hidden_layers=2)
        if patched:
            patch(model, None)
        trainer = SourceTrainer(
            model=model,
            args=arguments(tmp_path, use_liger_kernel=patched),
            train_dataset=mixture(),
            validation=validation_rows(one=5, two=3),
            data_collator=collate,
            selection=SelectionConfig(features="none"),
        )
        trainer.evaluate()
        found.append(trainer.source_losses)
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"fused_linear_cross_entropy": True}, "hides the logits.*train_head='chunked', or 'fused' on a GPU"),
        ({"cross_entropy": True}, "replaces torch's cross-entropy everywhere"),
    ],
    ids=str,
)
def test_kernels_of_the_loss_are_refused(tmp_path: Path, liger: list[Any], config: dict[str, bool], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        run(tmp_path, use_liger_kernel=True, liger_kernel_config=config)
    assert liger == []


@pytest.mark.filterwarnings("ignore:`use_liger_kernel=True` is deprecated:FutureWarning")
def test_trl_keeps_its_own_head(tmp_path: Path, liger: list[Any]) -> None:
    found = []
    for name in ("plain", "liger", "patched"):
        model = tiny_model("llama", num_hidden_layers=2)
        if name == "patched":
            patch(model, None)
        trainer = CoresetSFTTrainer(
            model,
            sft_settings(tmp_path / name, max_steps=1, use_liger_kernel=name == "liger"),
            train_dataset=mixture(),
            processing_class=train_tiny_tokenizer(["a"]),
        )
        trainer.train()
        found.append(weights(trainer))
    assert liger == [{"fused_linear_cross_entropy": False}]
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="hides the logits"):
        CoresetSFTTrainer(
            tiny_model(),
            sft_settings(tmp_path, use_liger_kernel=True, liger_kernel_config={"fused_linear_cross_entropy": True}),
            train_dataset=mixture(),
        )
