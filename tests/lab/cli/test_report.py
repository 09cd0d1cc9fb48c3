"""`colm report` as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.reports import write_comparison_folder, write_run

from colm.lab.cli import main


def test_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "mine")
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"Written to {folder / 'report.html'}.\n"
    assert "Run mine" in (folder / "report.html").read_text()
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text() == (folder / "report.html").read_text()


def test_several_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [str(write_run(tmp_path / method / "seed-0")) for method in ("colm+keep=0.25", "control")]
    monkeypatch.chdir(tmp_path)
    assert main(["report", *folders]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "colm+keep=0.25/seed-0" in page
    assert "control/seed-0" in page


def test_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_comparison_folder(tmp_path / "c", methods={"random": 0.0, "colm": 0.1}, seeds=2)
    assert main(["report", str(folder)]) == 0
    page = (folder / "compare.html").read_text()
    assert "the method with exact gradients" in page
    run = str(folder / "colm" / "seed-0")
    assert main(["report", run, str(folder)]) == 2
    assert "contains a comparison, which has its own page: give it alone" in capsys.readouterr().err


def test_errors_are_one_line_and_status_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path / "gone")]) == 2
    assert "colm: There is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path), "selection.keep=0.5"])
    assert "colm report takes no settings (selection.keep=0.5)" in capsys.readouterr().err


def test_a_report_needs_neither_transformers_nor_a_model(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine", steps=10)
    code = "import sys; from colm.lab.cli import main; main(sys.argv[1:]); assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, "report", str(folder)], check=True, capture_output=True)
    assert (folder / "report.html").exists()
