"""Clusters in the place of labels, in every command."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from tests.support.commands import write_run
from tests.support.files import read_lines
from tests.support.processes import torchrun
from tests.support.topics import topic_rows

from colm.lab.cli import main
from colm.lab.cli.source_tables import share_in_small

THREE = {"cluster": {"clusters": 3}}


def write_config(folder: Path, **changes: Any) -> str:
    config = write_run(folder, sources=THREE, **changes)
    topic_rows(200, labelled=False).to_json(folder / "rows.jsonl")
    return config


def test_a_run_clusters_once_and_goes_on_with_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    assert main(["sources", config, "sources.cluster.clusters={least: 2, most: 6}"]) == 0
    shown = capsys.readouterr().out
    assert "the elbow of the mean squared distance" in shown
    page = (run / "sources.html").read_text()
    assert "cluster-0" in page
    assert "elbow of the mean squared distance" in page
    assert main(["train", config]) == 0  # with other settings: clustered anew
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["sources"]) == {"cluster-0", "cluster-1", "cluster-2"}
    assert all(source["eval_loss_after"] is not None for source in summary["sources"].values())
    assert "cluster-2" in summary["small_sources"]
    made = (run / "labels.parquet").stat().st_mtime_ns

    capsys.readouterr()
    assert main(["train", config, "--resume", "training.max_steps=8", "sources.cluster.clusters=4"]) == 2
    assert "contains a run with other settings (sources.cluster.clusters: 3 -> 4)" in capsys.readouterr().err
    monkeypatch.setattr("colm.lab.sources.labelling.make_embedder", lambda *_: pytest.fail("embedded again"))
    assert main(["train", config, "--resume", "training.max_steps=8"]) == 0
    assert (run / "labels.parquet").stat().st_mtime_ns == made
    pools = [name for line in read_lines(run / "selection.jsonl") for name in line["pool"]]
    assert set(pools) == {"cluster-0", "cluster-1", "cluster-2"}


def test_labels_are_made_apart_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, labels = write_config(tmp_path), tmp_path / "labels.parquet"
    command = ["sources", "--cluster", str(tmp_path / "rows.jsonl"), "--out", str(labels)]
    assert main([*command, "sources.cluster.clusters=3"]) == 0
    shown = capsys.readouterr().out
    assert "3 clusters of 200 rows" in shown
    assert f"use it with sources.labels={labels}" in shown
    assert len(pq.read_table(labels)) == 200
    assert main([*command, "sources.cluster.clusters=4"]) == 2
    assert "made with other settings" in capsys.readouterr().err
    held = yaml.safe_load(Path(config).read_text())
    Path(config).write_text(yaml.safe_dump(held | {"sources": {"labels": str(labels), "map": {"cluster-0": "big"}}}))
    assert main(["train", config, "training.max_steps=1"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["sources"]) == {"big", "cluster-1", "cluster-2"}
    assert not (tmp_path / "run" / "labels.parquet").exists()
    assert main(["train", config, "--overwrite", "data.weights={cluster-9: 1}"]) == 2
    assert "data.weights names 'cluster-9', which is not a source" in capsys.readouterr().err
    assert main(["train", config, "--overwrite", "sources={labels: none.parquet}"]) == 2
    assert "There is no file 'none.parquet' (sources.labels). Make it with colm sources" in capsys.readouterr().err
    assert (tmp_path / "run" / "summary.json").exists()


def test_too_many_small_clusters_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colm.lab.cli.sources.MUCH", 0.2)
    write_config(tmp_path)
    labels = tmp_path / "labels.parquet"
    command = ["sources", "--cluster", str(tmp_path / "rows.jsonl"), "--out", str(labels)]
    assert main([*command, "sources.cluster.clusters=12"]) == 0
    names = pq.read_table(labels)["source"].to_pylist()
    assert share_in_small(names) > 0.2
    assert f"hold {share_in_small(names):.0%} of the rows" in " ".join(capsys.readouterr().out.split())


def test_embeddings_of_the_tuned_model(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert main(["train", config, "training.max_steps=1", "sources.cluster.embedding=model"]) == 0
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert settings["sources"]["cluster"]["embedding"] == "model"


def test_the_command_needs_something_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sources"])
    assert "needs CONFIG.yaml, or --cluster DATA" in capsys.readouterr().err


def test_a_model_must_be_named_for_its_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(tmp_path)
    command = ["sources", "--cluster", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "labels.parquet")]
    assert main([*command, "sources.cluster.embedding=model"]) == 2
    assert "embedding=model needs a model: give model=NAME" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_of_a_comparison_share_their_clusters(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    command = ["compare", config, "--methods", "random", "colm", "--seeds", "0", "1", "training.max_steps=2"]
    assert main(command) == 0
    labels = list((tmp_path / "run").rglob("labels.parquet"))
    assert labels == [tmp_path / "run" / "labels.parquet"]
    found = [json.loads(path.read_text()) for path in (tmp_path / "run").rglob("summary.json")]
    assert len(found) == 4
    assert len({json.dumps({n: s["rows"] for n, s in each["sources"].items()}) for each in found}) == 1


@pytest.mark.slow
def test_one_of_two_processes_clusters(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    command = [*torchrun(2), "-m", "colm"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    for again in ([], ["--resume", "training.max_steps=8"]):
        done = subprocess.run(
            [*command, "train", config, *again], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stderr.count("Embedding:") == 0 or not again
        assert done.stderr.count("200/200") <= 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 8
    assert set(summary["sources"]) == {"cluster-0", "cluster-1", "cluster-2"}
