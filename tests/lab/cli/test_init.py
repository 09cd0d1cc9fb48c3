"""`colm init`: what it writes is read again and passes a dry run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.files import write_lines

from colm.lab.cli import main

SIZES = {"big": 90, "mid: dle": 30, "small #1": 10}


def pairs(number: int, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{i} + 1 = ", "completion": str(i + 1), **more} for i in range(number)]


def labelled(column: str) -> list[dict[str, Any]]:
    return [
        {"question": f"{name} {i}?", "answer": str(i), column: name}
        for name, rows in SIZES.items()
        for i in range(rows)
    ]


def chats(number: int) -> list[dict[str, Any]]:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    return [{"messages": [*turns, {"role": "user", "content": f"{i}?"}, turns[1]]} for i in range(number)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "labelled.jsonl", labelled("source"))
    write_lines(tmp_path / "tasks.jsonl", labelled("task"))
    write_lines(tmp_path / "no: 7.jsonl", pairs(12))
    write_lines(tmp_path / "chats.jsonl", chats(20))
    (tmp_path / "inner").mkdir()
    write_lines(tmp_path / "inner" / "chats.jsonl", chats(30))
    write_lines(tmp_path / "inner" / "tasks.jsonl", labelled("task"))
    return tmp_path


def read(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((place / "run.yaml").read_text())
    return found


def is_train(values: dict[str, Any]) -> bool:
    return values["data"]["train"] == "labelled.jsonl" and values["data"]["source_column"] == "source"


def is_task(values: dict[str, Any]) -> bool:
    return values["data"]["train"] == "tasks.jsonl" and values["data"]["source_column"] == "task"


@pytest.mark.parametrize(
    ("files", "sources", "expected"),
    [
        (["labelled.jsonl"], list(SIZES), is_train),
        (["tasks.jsonl"], list(SIZES), is_task),
        (["no: 7.jsonl"], ["no: 7"], lambda values: values["mixture"] == [{"path": "no: 7.jsonl", "source": "no: 7"}]),
        (
            ["labelled.jsonl", "inner/tasks.jsonl", "no: 7.jsonl", "chats.jsonl"],
            [*SIZES, "no: 7", "chats"],
            lambda values: values["mixture"][1]["columns"] == {"source": "task"},
        ),
        (["chats.jsonl", "inner/chats.jsonl"], ["chats.jsonl", "inner/chats.jsonl"], lambda values: True),
        ([], ["gsm_symbolic"], lambda values: values["data"]["train"] == "demo"),
    ],
)
def test_what_it_writes_passes_a_dry_run(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    files: list[str],
    sources: list[str],
    expected: Callable[[dict[str, Any]], bool],
) -> None:
    assert main(["init", *files, "--model", "tiny"]) == 0
    assert "colm train run.yaml --dry-run" in capsys.readouterr().out
    values = read(place)
    assert values["model"] == "tiny"
    assert expected(values)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["train", "run.yaml", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for name in sources:
        assert f" {name} " in shown
    assert f" {values['training']['max_steps']} steps." in shown
    assert not (place / "runs").exists()


def test_with_a_model_it_proposes_lora_and_says_where_the_model_is_missing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "labelled.jsonl", "--model", "no-such/model", "--out", "new/first.yaml"]) == 0
    values = yaml.safe_load((place / "new" / "first.yaml").read_text())
    assert values["lora"]["r"] > 0
    assert values["output_dir"] == "runs/first"
    assert main(["train", "new/first.yaml", "--dry-run"]) == 2
    assert "The tokenizer of 'no-such/model' could not be loaded" in capsys.readouterr().err


def test_a_file_in_the_way_stays(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "run.yaml"
    out.write_text("mine")
    assert main(["init", "labelled.jsonl", "--model", "tiny"]) == 2
    assert "run.yaml already exists. Replace a file with --overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["init", "labelled.jsonl", "--model", "tiny", "--overwrite"]) == 0
    assert read(place)["model"] == "tiny"
    assert main(["init", "--model", "tiny", "--overwrite", "--out", "inner"]) == 2


def test_the_model_is_asked_for_on_a_terminal_only(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["init", "labelled.jsonl"]) == 2
    assert "No model is named: give --model NAME" in capsys.readouterr().err
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: " ")
    assert main(["init", "labelled.jsonl"]) == 2
    monkeypatch.setattr("builtins.input", lambda _: "demo ")
    assert main(["init", "labelled.jsonl"]) == 0
    assert read(place)["model"] == "demo"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["gone.jsonl", "lost.csv"], "2 files cannot be used. (1) There is no file 'gone.jsonl'"),
        (["tasks.jsonl", "tasks.jsonl"], "tasks.jsonl is given twice"),
        (["tasks.jsonl", "inner/tasks.jsonl"], "2 files are named 'tasks'"),
        (["odd.jsonl"], "match no format"),
        (["holes.jsonl"], "source"),
    ],
)
def test_bad_files_are_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], files: list[str], message: str
) -> None:
    write_lines(place / "odd.jsonl", [{"a": 1}])
    write_lines(place / "holes.jsonl", [*labelled("source"), {"question": "?", "answer": "!", "source": None}])
    assert main(["init", *files, "--model", "tiny"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("colm: ")
    assert error.count("\n") == 1
    assert not (place / "run.yaml").exists()
