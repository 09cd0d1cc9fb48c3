"""Trainer options combined with selection: each takes effect, or is rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.trainers import coreset_trainer, lines, mixture, weights

from colm import ConfigError, SelectionConfig


def trained(folder: Path, *, selection: SelectionConfig | None = None, **args: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    trainer = coreset_trainer(folder, selection=selection, args={"max_steps": 2, **args})
    torch.manual_seed(0)
    trainer.train()
    return lines(folder), weights(trainer)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train without further options."""
    return trained(tmp_path_factory.mktemp("plain"))


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_embedding_noise_affects_training_but_not_selection(tmp_path: Path, plain: Any) -> None:
    noisy, with_noise = trained(tmp_path / "noisy", neftune_noise_alpha=5)
    assert noisy[0]["kept"] == plain[0][0]["kept"]  # the selection pass is in eval mode
    assert not same(with_noise, plain[1])
    folder = tmp_path / "reused"
    reuse = SelectionConfig(reuse_forward=True)
    with pytest.raises(ConfigError, match="neftune_noise_alpha=5 adds noise .* set one to null or False"):
        trained(folder, selection=reuse, neftune_noise_alpha=5, gradient_checkpointing=True)


@pytest.mark.parametrize(
    "args",
    [
        {"data_seed": 1},
        {"train_sampling_strategy": "sequential"},
        {"train_sampling_strategy": "group_by_length"},
    ],
    ids=str,
)
def test_options_that_order_the_rows_take_effect(tmp_path: Path, plain: Any, args: dict[str, Any]) -> None:
    other, _ = trained(tmp_path / "other", **args)
    assert [line["pool"] for line in other] != [line["pool"] for line in plain[0]]


@pytest.mark.parametrize(
    "args",
    [
        {"weight_decay": 0.5},
        {"max_grad_norm": 1e-3},
        {"optim": "sgd"},
        {"lr_scheduler_type": "constant"},
        {"warmup_steps": 2},
    ],
    ids=str,
)
def test_options_that_shape_the_steps_take_effect(tmp_path: Path, plain: Any, args: dict[str, Any]) -> None:
    _, other = trained(tmp_path / "other", **args)
    assert not same(plain[1], other)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"accelerator_config": {"split_batches": True}}, "split_batches=True in accelerator_config"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 would be ignored"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size changes the pool"),
    ],
)
@pytest.mark.parametrize("loss", ["example", "token"])
def test_options_without_effect_are_refused(tmp_path: Path, args: dict[str, Any], message: str, loss: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        coreset_trainer(tmp_path, args=args, selection=SelectionConfig(loss=loss), train_dataset=mixture())
