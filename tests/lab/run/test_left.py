"""Sources by any label from file to report, and sources of which nothing is left to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.files import read_lines, write_lines, write_settings

from colm.lab.cli import main


def write_parts(folder: Path, **data: Any) -> str:
    """Write a mixture of files, each with labels of another type, and of one whose rows are all too long."""
    labels: dict[str, Any] = {"text": "no", "whole": 0, "broken": 0.5, "truth": True}
    entries = []
    for place, (name, label) in enumerate(labels.items()):
        rows = [{"source": label, "prompt": f"{name} {i}: ", "completion": str(i)} for i in range(10 + 8 * place)]
        entries.append({"path": write_lines(folder / f"{name}.jsonl", rows)})
    long = {"prompt": "long " * 60, "completion": "x"}
    entries.append({"path": write_lines(folder / "long.jsonl", [long] * 30), "source": 7})
    values = {
        "model": "tiny",
        "data": {"max_length": 32, **data},
        "mixture": entries,
        "training": {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": 5},
        "output_dir": str(folder / "run"),
    }
    return write_settings(folder, values)


@pytest.mark.parametrize("streaming", [False, True])
def test_from_file_to_report(tmp_path: Path, caplog: pytest.LogCaptureFixture, streaming: bool) -> None:
    limits: dict[str, Any] = {"window": 500} if streaming else {"cap": {0.5: 9, 7: 20}, "validation_rows": {True: 4}}
    assert main(["train", write_parts(tmp_path, streaming=streaming, **limits)]) == 0
    run, gone = tmp_path / "run", 30 if streaming else 20
    summary = json.loads((run / "summary.json").read_text())
    names = {"no", "0", "0.5", "true"}
    assert set(summary["sources"]) == {*names, "7"}
    assert (summary["sources"]["7"]["rows"], summary["sources"]["7"]["dropped"]) == (0, gone)
    if not streaming:
        assert {name: held["rows"] for name, held in summary["sources"].items()} == {
            "no": 10,
            "0": 18,
            "0.5": 9,
            "true": 30,
            "7": 0,
        }
        assert summary["small_sources"] == ["0.5", "no"]  # below the share of the four that are left, 16.75
        assert f"data.cap names '7', which has {gone} rows, but none has a labeled token within" in caplog.text
        losses = read_lines(run / "evaluations.jsonl")[-1]["losses"]
        assert list(losses) == ["true"]
    assert {name for line in read_lines(run / "selection.jsonl") for name in line["pool"]} == names
    assert f"'7' {gone} of {gone} (none is left)" in caplog.text
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert f"7: {gone} rows, none with a labeled token within max_length=32" in page
    assert all(f'<th scope="row">{name}</th>' in page for name in names)


def test_colm_sources_names_what_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sources", write_parts(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "7: 30 rows, none with a labeled token within max_length=32" in shown
    assert "Sources without a row left: '7' has 30 rows, but none has a labeled token" in shown
    page = (tmp_path / "run" / "sources.html").read_text()
    assert "7: 30 rows, none with a labeled token within max_length=32" in page
    assert "Sources without a row left" in page


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_a_list_that_names_a_source_without_a_row_left_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], streaming: str
) -> None:
    given = ["selection.small_sources=[0, 7]", f"data.streaming={streaming}"]
    assert main(["train", write_parts(tmp_path), *given]) == 2
    told = "small_sources names '7', which has 30 rows, but none has a labeled token within max_length=32"
    assert told in capsys.readouterr().err
