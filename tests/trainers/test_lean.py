"""Training with the head on labeled positions only is training on all logits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.architectures import build_architecture
from tests.support.models import tiny_model
from tests.support.trainers import arguments, collate, coreset_trainer, mixture, same_weights, validation_rows, weights

from colm import SelectionConfig
from colm.trainers.evaluation import SourceTrainer

ALL = "The output head runs on all positions in training: "


def train(folder: Path, head: str, *, model: Any = None, args: dict[str, Any] | None = None, **selection: Any) -> Any:
    trainer = coreset_trainer(
        folder,
        model=model or tiny_model("llama", num_hidden_layers=2).double(),
        selection=SelectionConfig(train_head=head, head_chunk_tokens=3, **selection),
        args={"max_steps": 3, **(args or {})},
    )
    torch.manual_seed(0)
    trainer.train()
    return trainer


@pytest.mark.parametrize("head", ["labeled", "chunked"])
@pytest.mark.parametrize(
    "selection",
    [
        {"keep": 1.0},
        {"keep": 1.0, "loss": "token"},
        {"keep": 0.5},
        {"keep": 0.5, "reuse_forward": True},
        {"keep": 0.5, "features": "none", "weights": "relative", "balance": 0.5},
    ],
    ids=str,
)
def test_all_heads_train_the_same_weights(tmp_path: Path, head: str, selection: dict[str, Any]) -> None:
    args = {"gradient_checkpointing": "reuse_forward" in selection}
    found = [train(tmp_path / kind, kind, args=args, **selection) for kind in ("all", head)]
    for ours, expected in zip(*map(weights, found), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=5e-6)  # the Trainer rounds float64 logits to float32
    logged = [[log["loss"] for log in each.state.log_history if "loss" in log] for each in found]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


def test_a_model_that_adds_a_loss_of_its_own_keeps_it(tmp_path: Path) -> None:
    found = [
        train(
            tmp_path / head,
            head,
            model=build_architecture("mixtral", output_router_logits=True),
            keep=1.0,
            loss="token",
            features="none",
        )
        for head in ("all", "labeled")
    ]
    assert same_weights(*map(weights, found))


def test_the_log_says_what_was_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "colm")
    train(tmp_path / "lean", "labeled", keep=1.0)
    assert caplog.text.count("The output head runs on labeled positions only.") == 1
    model = tiny_model("llama", num_hidden_layers=2).double()
    model.get_output_embeddings = lambda: None
    trained = train(tmp_path / "all", "labeled", model=model, features="none", keep=1.0)
    assert caplog.text.count(f"{ALL}the model names no output head.") == 1
    assert same_weights(weights(trained), weights(train(tmp_path / "asked", "all", features="none", keep=1.0)))


def test_a_hook_sees_all_logits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "colm")
    model = tiny_model("llama", num_hidden_layers=2)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(output.logits.shape[:2]))
    train(tmp_path, "labeled", model=model, keep=1.0, features="none")
    assert f"{ALL}a hook reads the model's logits." in caplog.text
    assert sum(rows for rows, _ in seen) == 3 * 12  # the head on labeled positions has one row of logits


def test_an_evaluation_has_the_losses_of_all_logits(tmp_path: Path) -> None:
    found = []
    for head in ("all", "labeled", "chunked"):
        trainer = SourceTrainer(
            model=tiny_model("llama", num_hidden_layers=2),
            args=arguments(tmp_path / head),
            train_dataset=mixture(),
            validation=validation_rows(one=5, two=3),
            data_collator=collate,
            selection=SelectionConfig(train_head=head, features="none"),
        )
        metrics = trainer.evaluate()
        found.append({name: value for name, value in metrics.items() if "loss" in name})
    assert len(found[0]) == 4
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)
