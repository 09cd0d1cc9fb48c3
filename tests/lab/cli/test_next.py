"""What a training and a comparison say at their end: how to go on, and what was found."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import write_run
from tests.support.files import write_settings

from colm.lab.cli import main
from colm.lab.report.page import show_signed

TRAINING = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 2,
    "learning_rate": 5e-3,
    "save_strategy": "no",
}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a comparison train in this process, which has imported everything."""

    def run_one(folder: Path, settings: dict[str, Any], start: list[str]) -> None:
        folder.mkdir(parents=True)
        assert main(["train", write_settings(folder, {**settings, "output_dir": str(folder)})]) == 0

    monkeypatch.setattr("colm.lab.study.runs.run_one", run_one)


def next_commands(shown: str) -> list[list[str]]:
    lines = shown.partition("Next:\n")[2].splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("  colm ")]


def test_the_commands_that_a_training_names_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_run(tmp_path, training=TRAINING), str(tmp_path / "run")
    assert main(["train", config, "seed=3"]) == 0
    report, answer, compare = next_commands(capsys.readouterr().out)
    assert report == ["report", run]
    assert answer == ["eval", run]
    assert compare == ["compare", config, "seed=3", f"output_dir={run}-compared"]
    assert main(report) == 0
    assert main([*answer, "--max-new-tokens", "1"]) == 0
    assert main([*compare, "--methods", "no-such-method"]) == 2  # everything before the methods is accepted
    assert "no-such-method" in capsys.readouterr().err


def test_without_held_out_rows_there_is_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    data = {"train": str(tmp_path / "rows.jsonl"), "max_length": 32}
    config = write_run(tmp_path, data=data, training=TRAINING)
    assert main(["train", config]) == 0
    assert [words[0] for words in next_commands(capsys.readouterr().out)] == ["report", "eval"]
    assert main(["-q", "train", config, "--overwrite"]) == 0
    assert "Next:" not in capsys.readouterr().out


def test_a_comparison_ends_with_its_differences_and_a_conclusion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_this_process: None
) -> None:
    config = write_run(tmp_path, training=TRAINING)
    command = ["compare", config, "--methods", "control", "random", "--seeds"]
    assert main([*command, "0"]) == 0
    assert "One seed cannot decide" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "0", "1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    losses = json.loads((tmp_path / "run" / "compare.json").read_text())
    first, second = (losses["random"][seed]["macro"] - losses["control"][seed]["macro"] for seed in "01")
    mean, spread = (first + second) / 2, abs(first - second) / 2
    half = 12.7062 * spread  # Student's t of one degree of freedom
    assert f"95% interval {show_signed(mean - half, 3)[:-1]}" in shown
    assert "By final macro loss over 2 seeds, random is" in shown
