"""`colm compare` as a user runs it, with the tiny model."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tests.support.commands import write_run
from tests.support.files import read_lines, write_lines

from colm.errors import ConfigError
from colm.lab.cli import main
from colm.lab.cli.compare import _tables
from colm.lab.run.resume import check_settings
from colm.lab.run.settings import resolve_settings
from colm.lab.run.yaml12 import write_yaml
from colm.lab.study.planning import Study
from colm.lab.study.results import figures

TRAINING = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 2,
    "save_steps": 1,
    "use_cpu": True,
}


def test_figures_average_over_sources_by_size_and_leave_out_what_was_not_trained_on() -> None:
    def source(rows: int, loss: float | None) -> dict[str, Any]:
        return {"rows": rows, "eval_loss_after": loss}

    summary = {
        "steps": 3,
        "seconds": 2.0,
        "selection_seconds": 0.5,
        "peak_memory_bytes": 7,
        "small_sources": ["b"],
        "sources": {"a": source(90, 1.0), "b": source(10, 3.0), "unseen": source(0, 9.0), "no loss": source(5, None)},
    }
    assert figures(summary) == {
        "macro": 2.0,
        "micro": pytest.approx(1.2),
        "small": 3.0,
        "big": 1.0,
        "steps": 3,
        "seconds": 2.0,
        "selection_seconds": 0.5,
        "peak_memory_bytes": 7,
    }


@pytest.mark.parametrize(
    ("changes", "resumes", "compares"),
    [
        (["training.logging_steps=3", "training.save_steps=2", "selection.pass_tokens=64"], True, True),
        (["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=4"], True, True),
        (["training.per_device_train_batch_size=4"], True, False),  # with half the processes, which nothing here tells
        (["training.max_steps=3"], True, False),  # a finished run has as many steps as the others
        (["training.learning_rate=1"], False, False),
        (["data.max_length=24"], False, False),
    ],
)
def test_a_comparison_accepts_the_changes_that_a_resumed_run_accepts(
    tmp_path: Path, changes: list[str], resumes: bool, compares: bool
) -> None:
    config = write_run(tmp_path, training=TRAINING)
    for folder, settings in Study(config, []).plan(["random"], [0]).items():
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(write_yaml(settings))
        given = resolve_settings(settings, changes)
    for accepted, check in (
        (resumes, lambda: check_settings(given)),
        (compares, lambda: Study(config, changes).plan(["random"], [0])),
    ):
        if accepted:
            check()
            continue
        with pytest.raises(ConfigError, match="contains a run with other settings"):
            check()


@pytest.mark.slow
@pytest.mark.parametrize(("held", "planned"), [(101, 101), (90, 100)])
def test_a_run_of_nearly_the_same_cost_keeps_its_steps(tmp_path: Path, held: int, planned: int) -> None:
    """So a count that changes a little with a new version of colm does not refuse what an older one trained."""
    config = write_run(tmp_path, training=TRAINING | {"max_steps": 100})
    runs = Study(config, [], equal="time").plan(["control"], [0])
    [(folder, settings)] = runs.items()
    assert settings["training"]["max_steps"] == 100
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(write_yaml(settings).replace("max_steps: 100", f"max_steps: {held}"))
    [settings] = Study(config, [], equal="time").plan(["control"], [1]).values()
    assert settings["training"]["max_steps"] == planned


@pytest.mark.slow
def test_runs_share_data_and_what_is_finished_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path, training=TRAINING)
    command = ["compare", config, "--methods", "random", "colm+keep=0.75", "random-2n", "--seeds", "0", "1"]
    assert main([*command, "data.max_length=32"]) == 0
    assert "Mean over seeds" in capsys.readouterr().out
    out = tmp_path / "run"
    assert "random-2n" in (out / "compare.html").read_text()
    found = json.loads((out / "compare.json").read_text())
    assert set(found) == {"random", "colm+keep=0.75", "random-2n"}
    assert set(found["random"]) == {"0", "1"}
    assert set(found["random"]["0"]) == {
        "macro", "micro", "small", "big", "steps", "seconds", "selection_seconds", "peak_memory_bytes",
        "learning_rate", "free", "resampled",
    }  # fmt: skip
    assert found["random"]["0"]["macro"] != found["random"]["1"]["macro"]

    def lines(method: str, seed: int) -> list[dict[str, Any]]:
        return read_lines(out / method / f"seed-{seed}" / "selection.jsonl")

    def rows(held: dict[str, list[int]]) -> list[int]:
        return sorted(row for part in held.values() for row in part)

    random, colm, double = (lines(method, 0) for method in ("random", "colm+keep=0.75", "random-2n"))
    assert [rows(line["pool"]) for line in random] == [rows(line["pool"]) for line in colm]
    assert rows(double[0]["kept"]) == sorted(rows(random[0]["pool"]) + rows(random[1]["pool"]))
    assert [line["kept_count"] for line in colm] == [3, 3]
    assert rows(lines("random", 1)[0]["pool"]) != rows(random[0]["pool"])

    finished = (out / "random" / "seed-0" / "summary.json").stat().st_mtime_ns
    older = yaml.safe_load((out / "random" / "seed-0" / "config.yaml").read_text())
    del older["selection"]["shorten"]  # as written before there was such a setting
    (out / "random" / "seed-0" / "config.yaml").write_text(yaml.safe_dump(older))
    (out / "random" / "seed-1" / "summary.json").unlink()  # as if it had been killed after its last checkpoint
    before = found["random"]["1"]["macro"]
    assert main([*command, "data.max_length=32"]) == 0
    assert "6 runs, 5 of them finished" in capsys.readouterr().out
    assert (out / "random" / "seed-0" / "summary.json").stat().st_mtime_ns == finished
    assert json.loads((out / "compare.json").read_text())["random"]["1"]["macro"] == pytest.approx(before)
    assert main([*command, "data.max_length=24"]) == 2
    assert "contains a run with other settings (data." in capsys.readouterr().err


@pytest.mark.slow
def test_runs_on_other_data_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = write_run(tmp_path, training={**TRAINING, "max_steps": 1}), tmp_path / "run"
    command = ["compare", config, "--seeds", "0", "--methods", "random"]
    assert main(command) == 0
    rows = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(rows.replace("Rare ", "Seldom "))
    assert main([*command, "control"]) == 2
    error = capsys.readouterr().err
    assert "seed-0 contains a run on other data or of another model (54 training rows (" in error
    assert "Restore it, choose another output_dir, or delete that folder" in error
    assert not (out / "control").exists()
    (out / "random" / "seed-0" / "data.json").unlink()  # as an older version left it
    assert main([*command, "control"]) == 0
    (tmp_path / "rows.jsonl").write_text(rows)
    assert main([*command, "random-n"]) == 2
    assert "control/seed-0 contains a run on other data" in capsys.readouterr().err
    with monkeypatch.context() as patch:  # the file changes between two runs
        patch.setattr("colm.lab.study.planning.check_run_data", lambda *_: None)
        assert main([*command, "control", "random-n"]) == 2
    assert "control/seed-0 contains a run on other data" in capsys.readouterr().err


@pytest.mark.slow
def test_methods_of_equal_cost_each_at_its_own_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_run(tmp_path, training={**TRAINING, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2})
    methods = ["random", "random-n", "growing", "colm"]
    command = ["compare", config, "--methods", *methods, "--seeds", "0", "2", "--equal", "time"]
    command += ["--rates", "1e-4", "1e-3"]
    assert main(command) == 0
    assert "Mean over seeds" in capsys.readouterr().out
    out = tmp_path / "run"
    found = json.loads((out / "compare.json").read_text())
    assert set(found) == set(methods)
    assert {name: found[name]["0"]["steps"] for name in ("random", "random-n")} == {"random": 4, "random-n": 2}
    costs = {name: found[name]["0"]["operations"] / found["random"]["0"]["operations"] for name in methods}
    assert all(0.5 < cost <= 1 for cost in costs.values())
    held = json.loads((out / "rates.json").read_text())
    for name in methods:
        best = [float(rate) for rate, each in held[name].items() if each["best"]]
        assert [found[name][seed]["learning_rate"] for seed in ("0", "2")] == best * 2
        assert {path.name for path in (out / "rates" / name).glob("*/seed-*") if path.is_dir()} == {"seed-1"}
    page = (out / "compare.html").read_text()
    assert "Time to match the best free method" in page
    assert "against counted cost" in page.lower()
    assert main(command) == 0  # everything is finished
    assert capsys.readouterr().out.count("Written to") == 1


@pytest.mark.slow
def test_every_run_answers_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_run(tmp_path, training=TRAINING)
    rows = [{"source": name, "prompt": "1 + 1 = ", "answer": "2"} for name in ("adding", "other")]
    questions = tmp_path / "questions.jsonl"
    write_lines(questions, rows)
    command = ["compare", config, "--methods", "random", "--seeds", "0"]
    assert main(command) == 0
    asked = [*command, "--eval-data", str(questions), "--eval-options", "--max-new-tokens 4"]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    assert "1 runs, 1 of them finished" in shown
    assert "Answers of random/seed-0" in shown
    out = tmp_path / "run"
    figures = json.loads((out / "compare.json").read_text())["random"]["0"]
    assert 0 <= figures["exact_in"] <= 1
    assert 0 <= figures["exact_out"] <= 1
    assert main(asked) == 0
    assert "Answers of" not in capsys.readouterr().out
    answers = out / "random" / "seed-0" / "answers.json"
    assert main([*asked[:-1], "--max-new-tokens 5"]) == 0
    assert "Answers of random/seed-0" in capsys.readouterr().out
    assert json.loads(answers.read_text())["settings"]["max_new_tokens"] == 5
    questions.write_text(questions.read_text().replace("1 + 1", "1 + 2"))
    assert main([*asked[:-1], "--max-new-tokens 5"]) == 0
    assert "Answers of random/seed-0" in capsys.readouterr().out
    older = json.loads(answers.read_text())
    del older["settings"]["rows"], older["settings"]["dtype"]  # as an older version wrote them
    answers.write_text(json.dumps(older))
    assert main([*asked[:-1], "--max-new-tokens 5"]) == 0
    assert "Answers of" not in capsys.readouterr().out
    assert main([*command, "--eval-data", str(tmp_path / "rows.jsonl"), "--eval-options", "--limit 0"]) == 2
    assert "--limit=0 must be at least 1 row" in capsys.readouterr().err  # before anything is trained
    assert main([*command[:-1], "1", "--eval-data", "missing.jsonl"]) == 2
    assert "no file 'missing.jsonl'" in capsys.readouterr().err
    assert not (out / "random" / "seed-1").exists()


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"training": {"num_train_epochs": 1, "use_cpu": True}}, [], "needs training.max_steps"),
        ({"data": {"train": "rows.jsonl"}}, [], "needs validation data: set data.validation"),
        ({}, ["--methods", "colmm"], "Unknown method 'colmm'. Did you mean 'colm'"),
        ({}, ["--seeds", "-1"], "--seeds -1: a seed must be"),
        ({"model": "no-such"}, ["--equal", "time", "--rates", "0"], "--rates 0: a learning rate must be a finite"),
        ({"model": "no-such"}, ["--equal", "time", "--rates-seed", "-1"], "--rates-seed -1: a seed must be"),
        ({}, ["--methods", "colm+keep=2"], "keep=2 must be a number above 0 and at most 1"),
        ({}, ["--launcher", "no-such-program -n 2"], "there is no program 'no-such-program'"),
        ({}, ["--launcher", "torchrun '"], '--launcher "torchrun \'" is not a valid part of a command line'),
        ({}, ["--eval-options=--limit 3"], "has no effect without --eval-data"),
        ({}, ["--eval-data", "demo", "--eval-options=--limit '"], '--eval-options "--limit \'" is not a valid part'),
        ({}, ["--eval-data", "demo", "--eval-options=--limit -1"], "--limit=-1 must be at least 1 row"),
        (
            {},
            ["--eval-data", "demo", "--eval-options=--batch-size 0"],
            "--batch-size=0 must be a whole number of at least 1",
        ),
        ({}, ["--eval-data", "demo", "--eval-options=--sample nan"], "--sample=nan must be a temperature"),
        ({}, ["--eval-data", "demo", "--eval-options=--seed 4294967296"], "--seed=4294967296 must be a whole number"),
    ],
)
def test_bad_comparisons_are_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], arguments: list[str], message: str
) -> None:
    assert main(["compare", write_run(tmp_path, **changes), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_folder_of_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_run(tmp_path, model="no-such"), tmp_path / "run"
    run.mkdir()
    (run / "selection.jsonl").write_text("")
    assert main(["compare", config]) == 2
    assert f"{run} contains a run (selection.jsonl), and colm report would show only" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["selection.jsonl"]
    (run / "compare.json").write_text("{}")  # a comparison began there earlier
    assert main(["compare", config]) == 2
    assert "contains a run" not in capsys.readouterr().err


def test_training_into_the_folder_of_a_comparison_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write_run(tmp_path, model="no-such"), tmp_path / "run"
    run.mkdir()
    (run / "compare.json").write_text("{}")
    for how in ([], ["--resume"], ["--overwrite"]):
        assert main(["train", config, *how]) == 2
        assert f"{run} contains a comparison (compare.json)" in capsys.readouterr().err
    assert [path.name for path in run.iterdir()] == ["compare.json"]


@pytest.mark.parametrize("answers", [{}, {"exact_in": 0.125, "exact_out": 0.25}])
def test_the_table_shows_all_figures_also_beside_a_long_name(answers: dict[str, float]) -> None:
    """In 80 columns, the width of a log."""
    run = {"macro": 1.5, "micro": 2.5, "small": 3.5, "big": 4.5, "steps": 4, "seconds": 1.0, "selection_seconds": 0.5}
    name = "colm+features=gradient_norm,pick=sample,by_source=false,weights=relative"
    console = Console(width=80, record=True, file=StringIO())
    for table in _tables({"random": {"0": run | answers}, name: {"0": run | answers}}):
        console.print(table)
    text = console.export_text()
    for figure in ("1.5000", "2.5000", "3.5000", "4.5000", "0.250", "50%", *("0.1250" for _ in answers)):
        assert text.count(figure) >= 2
    assert "…" not in text
