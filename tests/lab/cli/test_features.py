"""`colm features`: what it prints, what it refuses, and files that are there already."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.commands import write_run

from colm.lab.cli import main


def features(config: str, *words: str, by: str = "words") -> list[str]:
    return ["features", config, "--by", by, "--dimensions", "4", *words]


def test_a_file_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = write_run(tmp_path), tmp_path / "new" / "f.parquet"
    command = features(config, "--out", str(out))
    assert main(command) == 0
    assert capsys.readouterr().out == (
        f"54 vectors of 4 numbers. Written to {out}.\nUse it with selection.order=balanced selection.order_by={out}.\n"
    )
    written = out.stat().st_mtime_ns
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["file"] == str(out)
    assert (document["rows"], document["dimensions"], document["not_finite"], document["new"]) == (54, 4, 0, False)
    assert document["settings"]["by"] == "words"
    assert document["fingerprint"]["rows"] == 54
    assert document["part"] == {"number": 0, "parts": 1}
    assert main([*command, "data.validation_rows=3"]) == 2
    assert "already exists, but it has the vectors of other rows. Replace it with --over" in capsys.readouterr().err
    assert main([*command, "--dimensions", "3"]) == 2
    assert "already exists, but dimensions is 4, not 3" in capsys.readouterr().err
    assert out.stat().st_mtime_ns == written
    assert main([*command, "--overwrite", "--dimensions", "3"]) == 0
    assert pq.read_schema(out).field("features").type == pa.list_(pa.float32(), 3)
    assert list(out.parent.iterdir()) == [out]


def test_parts_and_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = write_run(tmp_path), tmp_path / "f.parquet"
    for shard in ("0/2", "1/2"):
        assert main(features(config, "--out", str(out), "--shard", shard)) == 0
        assert f"27 vectors of 4 numbers. Written to {tmp_path}/f-{shard[0]}-of-2.parquet" in capsys.readouterr().out
    join = ["features", "--join", "--out", str(out)]
    assert main([*join, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 54
    assert main(join) == 2
    assert "f.parquet already exists. Replace it with --overwrite" in capsys.readouterr().err
    assert main([*join, "--overwrite"]) == 0
    assert main(features(config, "--out", str(out))) == 0  # the same vectors
    assert "They were already in" in capsys.readouterr().out
    (tmp_path / "f-0-of-2.parquet").rename(out)
    assert main(features(config, "--out", str(out))) == 2
    assert "f.parquet already exists, but it has another part of the rows" in capsys.readouterr().err


def test_what_cannot_be_made_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_run(tmp_path)
    (tmp_path / "file").touch()
    pq.write_table(pa.table({"features": [[1.0]]}), tmp_path / "mine.parquet")
    (tmp_path / "text.parquet").write_text("mine")
    out = ["--out", str(tmp_path / "f.parquet")]
    for words, message in [
        ([*out, "--shard", "2/2"], "--shard '2/2' must be i/n with 0 <= i < n"),
        ([*out, "--dimensions", "0"], "--dimensions 0 must be from 1 to"),
        ([*out, "--model", "x"], "--by words needs no model"),
        ([*out, "data.streaming=true", "training.max_steps=1"], "The rows of a stream have no numbers"),
        ([*out, "data.train=null"], "No training data"),
        (["--out", str(tmp_path / "f.npy")], "must end with .parquet"),
        (["--out", str(tmp_path / "mine.parquet"), "--overwrite"], "was not written by colm features. Move it away"),
        (["--out", str(tmp_path / "text.parquet"), "--overwrite"], "is not a file of vectors"),
        (["--out", str(tmp_path / "file" / "f.parquet")], "cannot be written (File exists)"),
        (["--out", str(tmp_path / ("a" * 300 + ".parquet"))], "cannot be written (File name too long"),
    ]:
        assert main(features(config, *words)) == 2, message
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(features(config, *out)) == 2
    assert "divide the rows with --shard i/n" in capsys.readouterr().err
    for words in (["features", *out], ["features", config, *out], ["features", config, "--join", *out]):
        with pytest.raises(SystemExit, match="2"):
            main(words)
    assert not (tmp_path / "f.parquet").exists()
    assert (tmp_path / "text.parquet").read_text() == "mine"
