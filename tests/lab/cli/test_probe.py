"""`colm probe` as a user runs it, with the tiny model."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from tests.support.commands import write_run

from colm.lab.cli import main
from colm.lab.probe import measure
from colm.lab.probe.worth import Choice, Estimate, PoolGradients, judge_choices


def test_values_out_of_range_are_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_run(tmp_path)
    for given, told in (
        (["--stages", "-1"], "--stages -1: a stage must be a whole number of at least 0."),
        (["--pools", "3"], "--pools 3 must be at least 4"),
        (["--batches", "0"], "--batches 0: a step has at least 1 row."),
        (["--choices", "1/2", "2"], "--choices 2: a choice is K/N"),
        (["--choices", "4/4"], "--choices 4/4: of a pool of 4 rows, 4 cannot be kept; keep 1 to 3."),
    ):
        assert main(["probe", config, *given]) == 2
        assert told in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["probe", config]) == 2
    assert "colm probe runs in one process, but the launcher starts 2" in capsys.readouterr().err


@pytest.mark.slow
def test_too_few_rows_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_run(tmp_path)
    for given, told in (
        (["--pools", "5"], "5 pools of 8 rows need 80 rows of training data, but there are 54"),
        (
            ["training.gradient_accumulation_steps=1", "--pools", "4", "--batches", "1", "55"],
            "--batches 55: a step has 1 to 54 rows, those of the training data",
        ),
        (["--choices", "2/17"], "--choices 2/17: the 64 rows that a stage looks at make 3 pools of 17"),
    ):
        assert main(["probe", config, *given]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.slow
def test_choices_that_small_sources_fill_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 6, "use_cpu": True}
    config = write_run(tmp_path, training=training, selection={"small_sources": ["adding", "naming"]})
    assert main(["probe", config, "--pools", "4", "--choices", "1/4"]) == 2
    assert "--choices 1/4: rows of small sources leave room for others in " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_a_probe_prints_tables_and_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lora: dict[str, int] | None
) -> None:
    training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 6, "use_cpu": True}
    config = write_run(tmp_path, training=training, lora=lora, selection={"small_sources": "none"})
    given = ["probe", config, "--pools", "4", "--stages", "0", "2", "--batches", "1", "4", "--choices", "2/4", "1/4"]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "in random rows" in shown
    assert "Rows of a step, 2 as configured" in shown
    assert main([*given, "--json", "--out", str(tmp_path / "page.html")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["rows"] for row in found["batches"]] == [1, 2, 4]
    assert set(found["noise_by_stage"]) == {"0", "2"}
    assert {rule["name"] for rule in found["rules"]} <= {"balanced order", "control", "colm", "matched"}
    held = {(rule["name"], rule["kept"], rule["pool"]) for rule in found["rules"]}
    assert {("balanced order", 1, 1), ("balanced order", 2, 2), ("matched", 2, 4), ("matched", 1, 4)} <= held
    assert all(set(rule["worth_by_stage"]) == {"0", "2"} for rule in found["rules"])
    assert found["advice"]["sentence"].endswith(".")
    assert found["advice"]["sentence"] in unescape((tmp_path / "page.html").read_text())
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"probe.html", ".colm"}


@pytest.mark.slow
def test_every_choice_keeps_its_rows_of_its_pools_of_the_same_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also fewer rows than a pool has micro-batches, each of which trains a row."""
    seen: dict[tuple[int, int], list[np.ndarray]] = {}

    def judge(pools: list[PoolGradients], choices: list[Choice], window: int) -> Estimate | None:
        assert {len(choice.rows) for choice in choices} == {len(choices[0].rows)}
        key = len(choices[0].rows), len(pools[0].rows)
        seen.setdefault(key, []).append(np.concatenate([pool.rows for pool in pools]))
        return judge_choices(pools, choices, window)

    monkeypatch.setattr(measure, "judge_choices", judge)
    training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 6, "use_cpu": True}
    config = write_run(tmp_path, training=training, selection={"small_sources": "none"})
    choices = ["1/2", "3/4", "1/4", "2/5"]
    assert main(["probe", config, "--pools", "5", "--stages", "0", "--choices", *choices]) == 0
    capsys.readouterr()
    assert set(seen) == {(1, 2), (3, 4), (1, 4), (2, 5)}
    whole = seen[1, 2][0]
    assert all(np.array_equal(rows, whole[: len(rows)]) for found in seen.values() for rows in found)
    assert all(len(found) == 3 for found in seen.values())  # control, colm, matched
