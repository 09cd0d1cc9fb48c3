"""`colm train --dry-run`: it finds what training would refuse, shows what would be learned, and leaves no trace."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import write_run
from tests.support.files import contents

from colm.lab.cli import main
from colm.lab.cli.dry_run import split_row


def test_it_shows_what_training_then_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_run(tmp_path)
    epochs = ["training.max_steps=-1", "training.num_train_epochs=1"]
    assert main(["train", config, "--dry-run", *epochs]) == 0
    shown = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    for text in ("source adding", "source naming", "source rare", "  learn | 1<eos>", "pool 8, keep 4"):
        assert text in shown
    assert "6 rows of 3 sources to evaluate on." in shown
    steps = int(re.search(r"(\d+) steps\. Nothing was trained", shown).group(1))
    assert main(["train", config, *epochs]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == steps == 7  # 54 rows in pools of 8
    for name, source in summary["sources"].items():
        assert re.search(rf"{name} .*\b{source['rows']} ", shown)


def test_a_run_in_the_folder_is_refused_or_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_run(tmp_path)
    assert main(["train", config, "training.max_steps=2"]) == 0
    before = contents(tmp_path / "run")
    assert main(["train", config, "--dry-run"]) == 2
    assert "already contains a run" in capsys.readouterr().err
    for how in ("--resume", "--overwrite"):
        assert main(["train", config, "--dry-run", how]) == 0
    assert main(["train", config, "--dry-run", "--resume", "data.max_length=16"]) == 2
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("labels", [None, "labels.parquet"])
def test_clusters_are_not_stored(tmp_path: Path, labels: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    where = {} if labels is None else {"labels": str(tmp_path / labels)}
    config = write_run(tmp_path, sources={"cluster": {"clusters": 2}, **where})
    assert main(["train", config, "--dry-run"]) == 0
    assert "pool 8, keep 4" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "run.yaml"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "no-such/model"}, "The tokenizer of 'no-such/model' could not be loaded"),
        ({"lora": {"r": 4, "target_modules": ["nothing"]}}, "lora settings do not fit the model"),
        ({"selection": {"value_module": "v_prj"}}, "value_module='v_prj' does not match any module"),
        ({"selection": {"small_sources": ["addng"]}}, "names 'addng', which is not a source"),
        ({"training": {"metric_for_best_model": "los", "max_steps": 1}}, "is not a metric of the evaluation"),
    ],
)
def test_what_training_refuses_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert main(["train", write_run(tmp_path, **changes), "--dry-run"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_stream_is_shown_by_its_first_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    data = {"train": str(tmp_path / "rows.jsonl"), "streaming": True, "max_length": 32, "window": 40}
    assert main(["train", write_run(tmp_path, data=data), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "  learn | 1<eos>" in shown
    assert "No rows to evaluate on. 6 steps." in shown


def test_a_launcher_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", write_run(tmp_path), "--dry-run"]) == 2
    assert "the launcher starts 2; run it without a launcher" in capsys.readouterr().err


class Letters:
    """A tokenizer of letters."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert not skip_special_tokens
        return "".join(map(chr, ids))


def test_the_parts_of_a_row_alternate() -> None:
    text, learned = "ask a answer b", "      a       b"
    ids = [ord(letter) for letter in text]
    labels = [ord(letter) if mark.strip() else -100 for letter, mark in zip(text, learned, strict=False)]
    labels += [ids[-1]] * (len(ids) - len(labels))
    expected = [(bool(mark.strip()), letter) for letter, mark in zip(text, learned, strict=False)]
    parts = split_row({"input_ids": ids, "labels": labels}, Letters())
    assert "".join(part for _, part in parts) == text
    assert [(known, letter) for known, part in parts for letter in part] == expected
    assert all(one[0] != two[0] for one, two in pairwise(parts))
    (long,) = split_row({"input_ids": [97] * 1000, "labels": [-100] * 1000}, Letters())
    assert long == (False, "a" * 600 + " ... 400 more characters")
