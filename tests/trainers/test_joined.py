"""Training without padding is training with it, in both trainers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.support.architectures import build_architecture
from tests.support.models import tiny_model
from tests.support.sft import sft_settings
from tests.support.trainers import coreset_trainer, lines, mixture, same_weights, weights

from colm import ConfigError, CoresetSFTTrainer, SelectionConfig
from colm.models import train_tiny_tokenizer


def train(folder: Path, *, model: Any = None, args: dict[str, Any] | None = None, **selection: Any) -> Any:
    trainer = coreset_trainer(
        folder,
        model=model or tiny_model("llama", num_hidden_layers=2).double(),
        selection=SelectionConfig(**{"features": "none", "keep": 0.5, **selection}),
        args={"max_steps": 2, **(args or {})},
    )
    torch.manual_seed(0)
    trainer.train()
    return trainer


def assert_trained_alike(one: Any, other: Any) -> None:
    for ours, expected in zip(weights(one), weights(other), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=5e-6)
    logs = [[log for log in each.state.log_history if "loss" in log] for each in (one, other)]
    for ours, expected in zip(*logs, strict=True):
        by_batch = ("selection_", "entropy", "mean_token")  # TRL averages the means of the micro-batches
        names = [name for name in expected if not name.startswith(by_batch)]
        assert {name: ours[name] for name in names} == pytest.approx({name: expected[name] for name in names}, rel=1e-4)


@pytest.mark.parametrize(
    "selection",
    [
        {"features": "exact"},
        {"train_head": "chunked", "head_chunk_tokens": 3, "weights": "relative", "balance": 0.5},
        {"train_head": "all"},
        {"loss": "token"},
        {"loss": "token", "train_head": "all"},
    ],
    ids=str,
)
def test_the_trainer_trains_the_same_weights(tmp_path: Path, selection: dict[str, Any]) -> None:
    padded, joined = (train(tmp_path / str(free), padding_free=free, **selection) for free in (False, True))
    assert_trained_alike(joined, padded)
    assert lines(tmp_path / "True") == lines(tmp_path / "False")


def test_a_model_that_mixes_joined_rows_trains_padded_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "colm")
    padded, joined = (
        train(tmp_path / str(free), model=build_architecture("bloom"), padding_free=free) for free in (False, True)
    )
    assert same_weights(padded, joined)
    assert caplog.text.count("padding_free=True has no effect on this model, whose rows stay padded: ") == 1


def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    model = {"model": tiny_model("llama", num_hidden_layers=1)}
    saving = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    whole = train(tmp_path, args=saving, padding_free=True, **model)
    found = weights(whole)
    resumed = coreset_trainer(
        tmp_path,
        model=tiny_model("llama", num_hidden_layers=1, seed=1),
        selection=SelectionConfig(features="none", keep=0.5, padding_free=True),
        args=saving,
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same_weights(found, resumed)


def test_noise_that_grows_with_the_length_of_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neftune_noise_alpha=5 scales its noise by the length of a row"):
        train(tmp_path, padding_free=True, args={"neftune_noise_alpha": 5})


def sft(folder: Path, data: Dataset, selection: dict[str, Any], **changes: Any) -> Any:
    args = sft_settings(folder, max_steps=2, **changes)
    trainer = CoresetSFTTrainer(
        tiny_model("llama", num_hidden_layers=1).double(),
        args,
        train_dataset=data,
        processing_class=train_tiny_tokenizer(["a"]),
        selection=SelectionConfig(**{"features": "none", "keep": 0.5, **selection}),
    )
    torch.manual_seed(0)
    trainer.train()
    for name, value in changes.items():
        assert getattr(args, name) == value  # the user's own
        assert not getattr(trainer.args, name)
    return trainer


@pytest.mark.parametrize("selection", [{}, {"weights": "relative", "balance": 0.5}, {"loss": "token"}], ids=str)
def test_trl_selects_first_and_then_packs(tmp_path: Path, selection: dict[str, Any]) -> None:
    data = mixture()
    padded = sft(tmp_path / "padded", data, selection)
    setting = {"packing": True} if selection else {"padding_free": True}
    joined = sft(tmp_path / "joined", data, selection, **setting)
    assert joined.selection.padding_free
    assert_trained_alike(joined, padded)
    assert lines(tmp_path / "joined") == lines(tmp_path / "padded")
