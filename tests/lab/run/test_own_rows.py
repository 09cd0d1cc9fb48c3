"""A run asks what it held out, whatever becomes of its data."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.files import read_lines, write_lines, write_settings

from colm.errors import DataError
from colm.lab.cli import main
from colm.lab.data.held_rows import part_sources, write_rows
from colm.lab.run.own_rows import held_out_of
from colm.lab.run.prepare import prepare_data
from colm.lab.run.settings import load_settings
from colm.lab.study.finished import check_run_data

TRAINING = {
    **{"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1, "use_cpu": True},
    **{"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1},
}
ROWS = [  # two kinds of answers to most questions
    {"source": "ab"[i % 3 == 0], "prompt": f"{i % 40}: ", "completion": f"The answer is {i}."} for i in range(60)
]


def write_config(folder: Path, rows: list[dict[str, Any]] = ROWS, **data: Any) -> str:
    held = {"train": write_lines(folder / "rows.jsonl", rows), "max_length": 32, "validation_rows": 4}
    held |= {"chat_template": False, **data}
    values = {"model": "tiny", "data": held, "training": TRAINING, "output_dir": str(folder / "run")}
    return write_settings(folder, {**values, "selection": {"features": "none"}})


def asked_by(run: Path) -> list[tuple[str, str, str]]:
    assert main(["eval", str(run), "--max-new-tokens", "1"]) == 0
    lines = read_lines(run / "answers.jsonl")
    return [(line["source"], line["prompt"], line["expected"]) for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", write_config(folder)]) == 0
    asked_by(folder / "run")
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """Give a copy of the run, whose settings name the copy's data."""
    shutil.copytree(trained, tmp_path / "copy")
    path = tmp_path / "copy" / "run" / "config.yaml"
    path.write_text(path.read_text().replace(str(trained), str(tmp_path / "copy")))
    return tmp_path / "copy"


CHANGES: dict[str, Callable[[list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "append": lambda rows: [*rows, {"source": "a", "prompt": "new: ", "completion": "The answer is 7."}],
    "prepend": lambda rows: [{"source": "c", "prompt": "new: ", "completion": "The answer is 7."}, *rows],
    "reorder": lambda rows: rows[::-1],
    "edit": lambda rows: [{**row, "completion": f"{row['completion']} Or is it {i}?"} for i, row in enumerate(rows)],
    "rename": lambda rows: [{**row, "source": "c"} for row in rows],
    "delete": lambda rows: rows[::2],
    "other columns": lambda rows: [{"instruction": row["prompt"], "output": row["completion"]} for row in rows],
}


@pytest.mark.parametrize("change", [*CHANGES, "gone"])
def test_the_same_questions_are_asked_whatever_becomes_of_the_file(copy: Path, change: str) -> None:
    before = [(line["source"], line["prompt"], line["expected"]) for line in read_lines(copy / "run" / "answers.jsonl")]
    assert len(before) == 8
    if change == "gone":
        (copy / "rows.jsonl").unlink()
    else:
        write_lines(copy / "rows.jsonl", CHANGES[change](ROWS))
    assert asked_by(copy / "run") == before


def test_what_is_asked_was_not_trained(trained: Path) -> None:
    settings = load_settings(str(trained / "run.yaml"), [])
    data = prepare_data(settings)
    held = held_out_of(settings, trained / "run")
    assert list(write_rows(held)) == list(write_rows(data.held_out))
    asked = {row["prompt"] for part in held for row in part}
    read = {data.tokenizer.decode(row["input_ids"]).partition("The")[0] for row in data.train}
    assert asked | read == {row["prompt"] for row in ROWS}
    assert not asked & read


def test_rows_of_a_mixture_keep_the_names_that_the_run_gave_their_sources(tmp_path: Path) -> None:
    instructions = [{"instruction": f"{i}:", "output": "y", "kind": "i"} for i in range(10, 30)]
    write_lines(tmp_path / "one.jsonl", instructions)
    write_lines(tmp_path / "two.jsonl", [{"kind": "p", "prompt": f"{i}: ", "completion": "z"} for i in range(20, 40)])
    values = yaml.safe_load(Path(write_config(tmp_path, validation_rows={"merged": 6, "p": 3}, cap=8)).read_text())
    values["data"] |= {"train": None, "source_column": "kind", "weights": {"merged": 1, "p": 3}}
    values["mixture"] = [{"path": str(tmp_path / name)} for name in ("one.jsonl", "two.jsonl")]
    values["sources"] = {"map": {"i": "merged"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    data = prepare_data(load_settings(str(tmp_path / "run.yaml"), []))
    names = [name for part in data.held_out for name in part_sources(part, "kind")]
    assert {name: names.count(name) for name in set(names)} == {"merged": 6, "p": 3}
    assert data.validation is not None
    assert Counter(data.validation["kind"]) == {"merged": 6, "p": 3}


def test_a_validation_file_that_changes_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    held = [{"source": "ab"[i % 2], "prompt": f"{i}: ", "completion": "The answer is 1."} for i in range(38, 44)]
    config = write_config(tmp_path, validation=write_lines(tmp_path / "held.jsonl", held))
    assert main(["train", config]) == 0
    said = "data.validation shares 2 prompts with the training data, rows by source: a 1 of 3, b 1 of 3."
    assert caplog.text.count(said) == 1
    caplog.clear()
    assert main(["sources", config, "--out", str(tmp_path / "page.html")]) == 0
    assert caplog.text.count(said) == 1
    before = asked_by(tmp_path / "run")
    assert len(before) == 6
    assert "has changed since the run" not in caplog.text
    for change in (lambda: write_lines(tmp_path / "held.jsonl", held[1:]), lambda: (tmp_path / "held.jsonl").unlink()):
        change()
        caplog.clear()
        assert asked_by(tmp_path / "run") == before
        changed = (tmp_path / "held.jsonl").exists()  # of a file that is not there nothing can be said
        assert (
            caplog.text.count("held.jsonl has changed since the run. The questions are the run's own held-out rows")
            == changed
        )


def test_held_out_rows_that_are_all_too_long_stop_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    held = [{"source": name, "prompt": "So long. " * 20 + name, "completion": "The answer is 1."} for name in "abc"]
    config = write_config(tmp_path, validation=write_lines(tmp_path / "held.jsonl", held))
    assert main(["train", config, "training.load_best_model_at_end=true"]) == 0
    assert caplog.text.count("so the run trains without an evaluation") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["eval_loss_after"] is None
    assert len(asked_by(tmp_path / "run")) == 3
    assert main(["train", config, "training.load_best_model_at_end=true", "training.max_steps=2", "--resume"]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0


def test_a_stream_asks_and_leaves_out_what_it_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = write_config(tmp_path, streaming=True), tmp_path / "run"
    assert main(["train", config]) == 0
    kept, before = (run / "held_out.jsonl").read_bytes(), asked_by(run)
    assert len(before) == 8
    write_lines(tmp_path / "rows.jsonl", CHANGES["prepend"](ROWS[::-1]))
    assert asked_by(run) == before
    assert main(["train", config, "--resume", "training.max_steps=2"]) == 0
    assert (run / "held_out.jsonl").read_bytes() == kept
    settings = load_settings(config, [])
    data = prepare_data(settings, resume=True, kept=run)
    assert list(write_rows(data.held_out)) == kept.decode().splitlines(keepends=True)
    read = {data.tokenizer.decode(row["input_ids"]).partition("The")[0] for row in data.train}
    assert not {prompt for _, prompt, _ in before} & read
    (tmp_path / "compared" / "random").mkdir(parents=True)
    shutil.copytree(run, folder := tmp_path / "compared" / "random" / "seed-0")
    with pytest.raises(DataError, match=r"seed-0 contains a run on other data or of another model \(8 held-out rows"):
        check_run_data(tmp_path / "compared", {folder: settings.values})
    (run / "held_out.jsonl").unlink()  # as an older version left it
    assert main(["eval", str(run)]) == 2
    assert "made by an older version, which stored neither the held-out rows nor" in capsys.readouterr().err


def test_older_runs_are_asked_only_where_their_data_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unique = [{**row, "prompt": f"{i}: "} for i, row in enumerate(ROWS)]
    config, run = write_config(tmp_path, unique), tmp_path / "run"
    assert main(["train", config]) == 0
    before = asked_by(run)
    (run / "held_out.jsonl").unlink()
    assert asked_by(run) == before
    write_lines(tmp_path / "rows.jsonl", CHANGES["append"](unique))
    assert main(["eval", str(run)]) == 2
    error = capsys.readouterr().err
    assert "The data has changed since the run" in error
    assert "give questions with --data FILE." in error
    (run / "data.json").unlink()
    assert main(["eval", str(run)]) == 2
    assert "might include training rows. Give questions with --data FILE." in capsys.readouterr().err


def test_older_runs_go_on_with_the_rows_that_were_drawn_without_their_prompts(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load_settings(str(copy / "run.yaml"), [f"data.train={copy / 'rows.jsonl'}"])
    new = prepare_data(settings)
    (copy / "run" / "held_out.jsonl").unlink()
    old = prepare_data(settings, resume=True, kept=copy / "run")
    whole, without = (len(each.train) + len(each.validation or ()) for each in (old, new))
    assert whole == len(ROWS) > without
    assert "What this run of an older version holds out shares" in caplog.text


def test_columns_of_held_out_rows_may_be_named_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "solution": "7", "topic": "t"} for row in ROWS]
    assert main(["train", write_config(tmp_path, rows)]) == 0
    command = ["eval", str(tmp_path / "run"), "--max-new-tokens", "1", "data.columns={answer: solution}"]
    assert main([*command, "--source-column", "topic", "--out", str(tmp_path / "out")]) == 0
    lines = read_lines(tmp_path / "out" / "answers.jsonl")
    assert {(line["source"], line["expected"]) for line in lines} == {("t", "7")}
    assert main([*command, "--source-column", "topc"]) == 2
    assert "no column 'topc' for the source. Did you mean 'topic'" in capsys.readouterr().err


def test_a_run_that_did_not_hold_out_the_questions_is_named(
    trained: Path, copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, other = trained / "run", copy / "run"
    command = ["eval", str(run), str(other), "--max-new-tokens", "1", "--out", str(tmp_path / "answers")]
    assert main(command) == 0
    assert not caplog.records
    lines = (other / "held_out.jsonl").read_text().splitlines(keepends=True)
    (other / "held_out.jsonl").write_text("".join(lines[3:]))
    held = {json.loads(line)["row"]["prompt"] for line in lines[3:]}
    missing = sum(json.loads(line)["row"]["prompt"] not in held for line in lines[:3])
    assert missing
    assert main(command) == 0
    assert f"did not hold out {missing} of the 8 questions, which {run} held out" in caplog.text
    caplog.clear()
    data = str(trained / "rows.jsonl")
    assert main([*command, "--data", data, "--limit", "1"]) == 0
    assert not caplog.records
