"""The gradient noise scale in the Trainer: it changes nothing, is logged, and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import tiny_model
from tests.support.trainers import coreset_trainer, lines, same_weights

from colm import CoresetTrainer, SelectionConfig
from colm.step.record import read_records
from colm.trainers.figures import SelectionFigures

Case = tuple[dict[str, Any], dict[str, Any], bool]
CASES: dict[str, Case] = {
    "random, autocast, and checkpointing": (
        {"features": "none"},
        {"bf16": True, "gradient_checkpointing": True},
        False,
    ),
}
SLOW: dict[str, Case] = {
    "LoRA with dropout": ({}, {}, True),
    "joined rows and token loss": ({"padding_free": True, "loss": "token", "features": "none"}, {}, False),
    "reused forward": ({"reuse_forward": True}, {"gradient_checkpointing": True}, False),
}


def trainer_of(folder: Path, selection: dict[str, Any], args: dict[str, Any], *, lora: bool) -> CoresetTrainer:
    model = tiny_model("llama", lora=lora, num_hidden_layers=2)
    return coreset_trainer(folder, model=model, selection=SelectionConfig(**selection), args=args)


def losses(trainer: CoresetTrainer) -> list[float]:
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)])
def test_training_is_the_same_bit_for_bit(tmp_path: Path, case: str) -> None:
    selection, args, lora = (CASES | SLOW)[case]
    args, trainers = {"max_steps": 5, **args}, []
    for every in (0, 2):
        trainer = trainer_of(tmp_path / str(every), {**selection, "noise_every": every}, args, lora=lora)
        torch.manual_seed(3)
        trainer.train()
        trainers.append(trainer)
    without, measured = trainers
    assert losses(without) == losses(measured)
    assert same_weights(without, measured)
    found = lines(tmp_path / "2")
    noise = {line["step"]: line.pop("noise") for line in found if "noise" in line}
    assert found == lines(tmp_path / "0")
    assert list(noise) == [2, 4]
    sums = measured.selector.state_dict()["noise"]
    assert sums["adam"]
    assert sums["overall"][0] > 0


def test_it_is_logged_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    selection = {"keep": 1.0, "noise_every": 2}
    args = {"max_steps": 9, "save_strategy": "steps", "save_steps": 5, "logging_steps": 3}
    whole = trainer_of(tmp_path / "whole", selection, args, lora=False)
    whole.train()
    resumed = trainer_of(tmp_path / "whole", selection, args, lora=False)
    before = lines(tmp_path / "whole")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert lines(tmp_path / "whole") == before
    assert resumed.selector.state_dict()["noise"] == whole.selector.state_dict()["noise"]
    logs = [log for log in whole.state.log_history if "loss" in log]
    (last,) = (line["noise"] for line in before if line["step"] == 8)
    assert logs[2]["noise_scale"] == pytest.approx(last["overall"], abs=1e-4)
    logged = {name: logs[2][f"noise_scale/{name}"] for name in "abcd" if f"noise_scale/{name}" in logs[2]}
    assert logged == pytest.approx(last["sources"], abs=1e-4)
    assert logged
    few = SelectionFigures([*"abcd"], by_source=False)
    few.add_step(next(record for record in read_records(tmp_path / "whole" / "selection.jsonl") if record.step == 8))
    assert [key for key in few.take_log() if key.startswith("noise")] == ["noise_scale"]
