"""``--json``: one document on the standard output, with the numbers of the files and of the tables."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import write_run
from tests.support.reports import SIZES, write_comparison_folder
from tests.support.reports import write_run as write_finished

from colm.lab.cli import main
from colm.lab.cli.documents import to_json


def read(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main([*words, "--json"]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(capsys.readouterr().out, parse_constant=refuse)


def test_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = read(capsys, "sources", write_run(tmp_path))
    assert (found["pool"], found["keep"]) == (8, 4)
    assert {name: source["rows"] for name, source in found["sources"].items()} == {
        "adding": 34, "naming": 16, "rare": 4,
    }  # fmt: skip
    assert found["sources"]["rare"]["small"] is True
    assert math.isclose(sum(source["in_pool"] for source in found["sources"].values()), 8)
    assert math.isclose(sum(source["in_coreset"] for source in found["sources"].values()), 4)
    assert {"title", "reason", "advice"} == set(found["warnings"][0])
    assert Path(found["page"]).is_file()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_names_survive_an_output_that_is_not_utf_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    name = "größe… 漢字"
    folder = write_finished(tmp_path / "run", steps=10, sizes={name: 500, "small": 20})
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", out)
    assert main(["report", str(folder), "--json"]) == 0
    out.flush()
    found = json.loads(out.buffer.getvalue())  # read as UTF-8
    assert name in [source["name"] for source in found["runs"]["run"]["sources"]]


def test_clusters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path)
    labels = str(tmp_path / "labels.parquet")
    rows = str(tmp_path / "rows.jsonl")
    found = read(capsys, "sources", "--cluster", rows, "sources.cluster.clusters=3", "--out", labels)
    assert sum(cluster["rows"] for cluster in found["clusters"].values()) == found["rows"] == 60
    assert found["labels"] == labels


def test_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, other = write_run(tmp_path), str(tmp_path / "other")
    assert main(["train", config, "training.max_steps=1"]) == 0
    assert main(["train", config, "training.max_steps=1", "seed=1", "data.seed=0", f"output_dir={other}"]) == 0
    found = read(capsys, "eval", str(tmp_path / "run"), other, "--max-new-tokens", "1")
    for name in ("run", "other"):
        written = json.loads((tmp_path / name / "answers.json").read_text())
        assert found["runs"][name].pop("folder") == str(tmp_path / name)
        assert found["runs"][name] == written
    assert set(found["gains"]["other"]) == {"value", "low", "high"}


def test_report_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_finished(tmp_path / "run", steps=10)
    found = read(capsys, "report", str(folder))
    run = found["runs"]["run"]
    assert run["steps"] == 10
    assert {verdict["state"] for verdict in run["verdicts"]} <= {"problem", "fine", "unknown"}
    assert {source["name"]: source["rows"] for source in run["sources"]} == SIZES
    assert Path(found["page"]).is_file()


def test_report_of_a_comparison_and_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_comparison_folder(
        tmp_path / "compared", methods={"random": 0.0, "control": 0.1, "colm": 0.1}, steps=10
    )
    found = read(capsys, "report", str(folder))
    assert found["methods"] == json.loads((folder / "compare.json").read_text())
    assert found["sentence"].startswith("By final macro loss over")
    assert len(found["differences"]) == len(found["methods"]) - 1
    # Once every run is finished, colm compare prints the same.
    monkeypatch.setattr("colm.lab.study.planning.Study.plan", lambda *_, **__: {})
    config = write_run(tmp_path, output_dir=str(folder))
    monkeypatch.setattr("colm.lab.study.results.write_comparison_json", lambda *_: None)
    assert read(capsys, "compare", config) == found


def test_an_error_leaves_the_output_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["report", str(tmp_path)], ["sources", str(tmp_path / "gone.yaml")], ["eval", str(tmp_path)]):
        assert main([*words, "--json"]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("colm: ")


def test_numbers_that_json_lacks_are_null() -> None:
    assert json.loads(to_json({"a": [math.inf, (math.nan, 1.5)], 2: Path("x")})) == {"a": [None, [None, 1.5]], "2": "x"}
