"""The noise scale in the report of runs, and in what a training prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import write_run as write_config
from tests.support.files import read_lines, write_lines
from tests.support.reports import write_run

from colm.lab.cli import main
from colm.lab.report import read_run, write_report
from colm.lab.report.measures import last_noise, tabulate_sources, trace_noise
from colm.lab.run.noise import explain_noise
from colm.types import NoiseScale

FEW = {"algebra": 420, "poems": 60}
SENTENCE = "The noise scale at the end was about 68 rows: a step of 32 rows is below it"


@pytest.fixture(autouse=True)
def no_plots_by_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of a page's time."""
    monkeypatch.setattr("colm.lab.report.run_page.draw_sources", lambda runs, ids: [])


def write_measured(folder: Path, scales: dict[int, float | None]) -> Path:
    """Write a run that measured after these steps."""
    write_run(folder, steps=60, sizes=FEW)
    lines = read_lines(folder / "selection.jsonl")
    for step, scale in scales.items():
        sources = {} if scale is None else {"algebra": scale / 2, "poems": 3.0}
        lines[step]["noise"] = {"rows": 32, "overall": scale, "sources": sources}
    write_lines(folder / "selection.jsonl", lines)
    return folder


def report(capsys: pytest.CaptureFixture[str], *folders: Path) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["report", *map(str, folders), "--json"]) == 0
    runs: dict[str, Any] = json.loads(capsys.readouterr().out)["runs"]
    return runs


def test_a_run_that_measured_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_measured(tmp_path / "mine", {10: None, 20: 40.0, 50: 68.2})
    run = read_run(folder)
    assert last_noise(run) == NoiseScale(32, 68.2, {"algebra": 34.1, "poems": 3.0})
    scales, rows = trace_noise(run)
    assert (scales.x, scales.y, rows.x, rows.y) == ([21, 51], [40.0, 68.2], [21, 51], [32.0, 32.0])
    known = {row.name: row.noise for row in tabulate_sources(run) if row.noise is not None}
    assert known == {"algebra": 34.1, "poems": 3.0}
    found = report(capsys, folder)["mine"]
    page = (folder / "report.html").read_text()
    assert SENTENCE in page
    assert "rows at which a step is as much signal as noise; dashed: rows of a step" in page
    assert page.count("<td>68.2</td>") == page.count("<td>34.1</td>") == page.count("<td>3.0</td>") == 1
    assert found["noise"]["overall"] == 68.2
    assert found["noise"]["meaning"].startswith(SENTENCE)
    assert {row["name"]: row["noise"] for row in found["sources"]}["algebra"] == 34.1


def test_runs_without_it_show_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    never, unclear = write_run(tmp_path / "never", sizes=FEW), write_measured(tmp_path / "unclear", {10: None})
    assert report(capsys, unclear)["unclear"]["noise"] == {"rows": 32, "overall": None, "sources": {}, "meaning": None}
    assert "oise scale" not in (unclear / "report.html").read_text()
    assert tabulate_sources(read_run(never)) == tabulate_sources(read_run(unclear))
    runs = [read_run(folder) for folder in (never, write_measured(tmp_path / "mine", {50: 68.2}))]
    page = write_report(runs, tmp_path / "both.html").read_text()
    assert page.count("Noise scale,<br>rows") == 1
    assert f"mine: {SENTENCE}" in page


@pytest.mark.parametrize(
    ("scale", "rows", "words"),
    [
        (68.2, 32, "is below it and makes about 32% of"),
        (40.0, 32, "is near it and makes about 44% of"),
        (3.21, 32, "3.2 rows: a step of 32 rows is above it and makes about 91% of"),
        (0.0, 1024, "0 rows: a step of 1,024 rows is above it and makes about 100% of"),
    ],
)
def test_the_sentence(scale: float, rows: int, words: str) -> None:
    assert words in explain_noise(scale, rows)


@pytest.mark.slow
def test_a_training_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    words = ["selection.noise_every=1", "selection.features=none", "selection.keep=1.0", "training.save_strategy=no"]
    assert main(["train", config, *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["noise"] == read_lines(tmp_path / "run" / "selection.jsonl")[-1]["noise"]
    assert summary["noise"]["rows"] == 8
    assert explain_noise(summary["noise"]["overall"], 8) in shown
    assert f"noise scale {summary['noise']['overall']:.3g} rows" in shown
