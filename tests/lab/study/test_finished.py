"""Which answers of a comparison's runs still hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import write_run
from tests.support.files import write_lines

from colm.lab.run.settings import load_settings
from colm.lab.study.finished import is_answered, read_asked


def write_questions(path: Path, answer: str) -> str:
    rows = [{"source": "adding", "prompt": "1 + 1 = ", "answer": "2"}, {"prompt": "1 + 2 = ", "answer": answer}]
    return write_lines(path, [{"source": "other"} | row for row in rows])


def write_answers(folder: Path, settings: dict[str, Any]) -> None:
    (folder / "answers.json").write_text(json.dumps({"settings": settings}))


def test_answers_hold_for_the_same_questions_asked_the_same_way(tmp_path: Path) -> None:
    settings = load_settings(write_run(tmp_path), []).values
    questions = write_questions(tmp_path / "questions.jsonl", "3")
    asked = read_asked([questions], "--limit 3", settings)
    assert not is_answered(tmp_path, asked)
    write_answers(tmp_path, asked.expected)
    assert is_answered(tmp_path, asked)
    for other in ("", "--limit 4", "--limit 3 --sample 1", "--limit 3 dtype=bfloat16", "--limit 3 --run-programs"):
        assert not is_answered(tmp_path, read_asked([questions], other, settings)), other
    assert not is_answered(tmp_path, read_asked([questions], "--limit 3 --tasks gsm8k", settings))
    (tmp_path / "harness.json").write_text('{"gsm8k": {}}')
    assert is_answered(tmp_path, read_asked([questions], "--limit 3 --tasks gsm8k", settings))
    write_questions(tmp_path / "questions.jsonl", "4")
    assert not is_answered(tmp_path, read_asked([questions], "--limit 3", settings))


def test_the_demo_is_asked_of_every_seed_alike(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    first, second = (load_settings(config, ["data.seed=0", f"seed={seed}"]).values for seed in (1, 2))
    asked = read_asked(["demo"], "--limit 1", first)
    assert asked.expected == read_asked(["demo"], "--limit 1", second).expected


def test_answers_of_older_versions_hold_by_what_they_say(tmp_path: Path) -> None:
    settings = load_settings(write_run(tmp_path), []).values
    questions = write_questions(tmp_path / "questions.jsonl", "3")
    asked = read_asked([questions], "--limit 3", settings)
    write_answers(tmp_path, {key: value for key, value in asked.expected.items() if key not in ("rows", "dtype")})
    assert is_answered(tmp_path, asked)
    assert not is_answered(tmp_path, read_asked([questions], "--limit 4", settings))


def test_options_that_do_not_exist_are_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings(write_run(tmp_path), []).values
    with pytest.raises(SystemExit):
        read_asked(["questions.jsonl"], "--limits 3", settings)
    assert "--limits" in capsys.readouterr().err
