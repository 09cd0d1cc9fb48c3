"""When a run evaluates without being told; a resumed run keeps its own times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerState, TrainingArguments

from colm.lab.run.cadence import evaluate_often, settle_evaluation
from colm.lab.run.settings import RunSettings, resolve_settings
from colm.lab.run.yaml12 import write_yaml


@pytest.mark.parametrize("steps", [1, 9, 10, 100, 119, 1000, 12_345])
@pytest.mark.parametrize("key", ["max_steps", "num_train_epochs"])
def test_about_ten_evaluations(key: str, steps: int) -> None:
    added = evaluate_often({key: steps} if key == "max_steps" else {key: 3})
    state = TrainerState()
    state.compute_steps(TrainingArguments("unused", report_to="none", **added), steps)
    assert min(steps, 6) <= steps // state.eval_steps <= min(steps, 11)


@pytest.mark.parametrize("given", [{"eval_strategy": "no"}, {"eval_strategy": "epoch"}, {"eval_steps": 7}])
def test_settings_that_say_when_stay(given: dict[str, Any]) -> None:
    assert evaluate_often({"max_steps": 100, **given}) == {}


def settings_of(folder: Path, **training: Any) -> RunSettings:
    return resolve_settings(
        {"model": "tiny", "data": {"train": "x.jsonl"}, "training": training, "output_dir": str(folder)}
    )


def test_a_resumed_run_keeps_its_times(tmp_path: Path) -> None:
    older, run = settings_of(tmp_path, max_steps=100), tmp_path / "config.yaml"
    run.write_text(write_yaml(older.values))
    assert settle_evaluation(older, resumed=True) == older  # of a version that evaluated at the ends
    begun = settle_evaluation(older, resumed=False)
    assert begun.training["eval_steps"] == 10
    assert begun.training["eval_strategy"] == "steps"
    run.write_text(write_yaml(begun.values))
    longer = settle_evaluation(settings_of(tmp_path, max_steps=300), resumed=True)
    assert longer.training["eval_steps"] == 10
    told = settle_evaluation(settings_of(tmp_path, max_steps=300, eval_strategy="no"), resumed=True)
    assert told.training["eval_strategy"] == "no"
