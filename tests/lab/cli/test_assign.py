"""`colm sources --assign`: shards of files, with what a configuration says of their columns."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tests.support.topics import topic_rows

from colm.lab.cli import main


def test_clusters_of_a_sample_are_assigned_to_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = topic_rows(120, labelled=False)
    (tmp_path / "rows").mkdir()
    for number in range(2):
        rows.select(range(number * 60, number * 60 + 60)).to_parquet(tmp_path / "rows" / f"{number}.parquet")
    rows.select(range(60)).to_json(tmp_path / "sample.jsonl")
    labels, out = tmp_path / "labels.parquet", tmp_path / "new" / "rows.parquet"
    clustered = ["sources.cluster.clusters=3"]
    assert main(["sources", "--cluster", str(tmp_path / "sample.jsonl"), "--out", str(labels), *clustered]) == 0
    command = ["sources", "--assign", f"{tmp_path}/rows/*.parquet", "--centroids", f"{tmp_path}/labels.centroids.npz"]
    command += ["--out", str(out)]
    capsys.readouterr()
    assert main([*command, "--shard", "0/2"]) == 0
    assert f"60 rows. Written to {tmp_path}/new/rows-0-of-2.parquet.\n  cluster-0  " in capsys.readouterr().out
    assert main([*command, "--shard", "1/2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["rows"], document["new"], document["empty"]) == (60, True, 0)
    assert sum(document["sources"].values()) == 60
    first = pq.read_table(tmp_path / "new" / "rows-0-of-2.parquet")
    assert first["source"].to_pylist() == pq.read_table(labels)["source"].to_pylist()
    assert main([*command, "--shard", "0/2"]) == 0
    assert "They were already in" in capsys.readouterr().out
    assert main([*command, "--shard", "0/2", "data.source_column=kind"]) == 2
    assert "made with other columns. Replace it with --overwrite" in capsys.readouterr().err
    assert main([*command, "--shard", "0/2", "--overwrite", "data.source_column=kind"]) == 0
    assert "kind" in pq.read_schema(tmp_path / "new" / "rows-0-of-2.parquet").names


def test_what_has_no_effect_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assign = ["sources", "--assign", "rows", "--centroids", "c.npz"]
    for words in (
        assign,
        [*assign, "--out", "o.parquet", "--cluster", "x"],
        ["sources", "--cluster", "x", "--shard", "0/2"],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
    for words, message in [
        (["--shard", "2/2"], "--shard '2/2' must be i/n with 0 <= i < n"),
        (["data.template={text: '{a}'}"], "does not fill data.template"),
        ([], "There is no file 'c.npz' with clusters"),
    ]:
        assert main([*assign, "--out", str(tmp_path / "o.parquet"), *words]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*assign, "--out", str(tmp_path / "o.parquet")]) == 2
    assert "divide the files with --shard i/n" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
