"""Shards of data files have the rows of the data in order, each with its source; they are written once, and whole."""

from __future__ import annotations

import gzip
import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.topics import topic_rows

from colm.errors import ConfigError, DataError
from colm.lab.data.read import read_rows
from colm.lab.sources import shards
from colm.lab.sources.assign import AssignSources
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.labelling import label_rows
from colm.lab.sources.rows import Row, Rows
from colm.lab.sources.shards import divide, find_files, write_shard
from colm.lab.sources.store import centroids_path
from colm.lab.sources.wanted import Part

Fitted = tuple[AssignSources, list[dict[str, Any]], list[str]]
FILES, EACH = 3, 40


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Return the clusters, rows with other columns, and each row's source."""
    texts, path = topic_rows(FILES * EACH, labelled=False), tmp_path_factory.mktemp("clusters") / "labels.parquet"
    found = label_rows(Rows([texts]), ClusterConfig(clusters=3), path)
    rows = [
        {"id": number, "score": number / 3, "source": "old", "tags": [{"a": 1}], **row}
        for number, row in enumerate(texts)
    ]
    return AssignSources(centroids_path(path)), rows, found.names


def write_files(folder: Path, rows: list[dict[str, Any]], ending: str) -> Path:
    folder.mkdir()
    for number in range(FILES):
        own = rows[number * EACH : (number + 1) * EACH]
        path = folder / f"part-{number}{ending}"
        if ending == ".parquet":
            pq.write_table(pa.Table.from_pylist(own), path, row_group_size=10)
        else:
            text = "".join(json.dumps(row) + "\n\n" for row in own).encode()
            path.write_bytes(gzip.compress(text) if ending.endswith(".gz") else text)
    return folder


def read(paths: list[Path]) -> list[dict[str, Any]]:
    if paths[0].suffix == ".parquet":
        return [row for path in paths for row in pq.read_table(path).to_pylist()]
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("ending", "parts"), [(".parquet", (1, 2, 3, 5, 12)), (".jsonl", (1, 3)), (".jsonl.gz", (2,))])
def test_any_division_gives_the_same_rows(
    fitted: Fitted,
    ending: str,
    parts: tuple[int, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assigner, rows, names = fitted
    folder, seen = write_files(tmp_path / "rows", rows, ending), []
    monkeypatch.setattr(shards, "BATCH", 7)
    name_rows = AssignSources.name_rows
    monkeypatch.setattr(AssignSources, "name_rows", lambda self, held: seen.append(len(held)) or name_rows(self, held))
    wanted = [{**row, "source": name} for row, name in zip(rows, names, strict=True)]
    kind = ".parquet" if ending == ".parquet" else ".jsonl"
    for count in parts:
        out = tmp_path / f"of-{count}" / f"all{kind}"
        out.parent.mkdir()
        written = [write_shard(assigner, str(folder), out, part=Part(number, count)) for number in range(count)]
        found = read([shard.path for shard in written])
        assert found == wanted
        assert list(found[0]) == list(rows[0])  # the columns in their order
        assert sum(shard.rows for shard in written) == len(rows)
        counts = {name: sum(shard.sources.get(name, 0) for shard in written) for name in set(names)}
        assert counts == {name: names.count(name) for name in set(names)}
        hidden = {f".{shard.path.name}.json" for shard in written}
        assert {path.name for path in out.parent.iterdir()} == hidden | {shard.path.name for shard in written}
    assert max(seen) == 7  # never more rows in memory than a batch


def test_a_shard_is_written_once_and_whole(fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assigner, rows, _ = fitted
    data, out = str(write_files(tmp_path / "rows", rows, ".parquet")), tmp_path / "all.parquet"
    made = write_shard(assigner, data, out)
    stamp = out.stat().st_mtime_ns
    assert write_shard(assigner, data, out) == made._replace(new=False)
    assert out.stat().st_mtime_ns == stamp
    other = AssignSources(assigner.path, "kind")
    with pytest.raises(ConfigError, match="all.parquet already exists, made with other columns. Replace it with --o"):
        write_shard(other, data, out)
    with pytest.raises(ConfigError, match="made with other data and columns"):
        write_shard(other, str(tmp_path / "rows" / "part-1.parquet"), out)

    name_rows = AssignSources.name_rows

    def stop(self: AssignSources, held: Any) -> list[str]:
        if stopping:
            assert sorted(path.name for path in tmp_path.glob("[!.]*")) == ["all.parquet", "rows"]  # the rest is hidden
            raise KeyboardInterrupt
        stopping.append(True)
        return name_rows(self, held)

    stopping: list[bool] = []
    monkeypatch.setattr(AssignSources, "name_rows", stop)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*all*")}
    with pytest.raises(KeyboardInterrupt):
        write_shard(other, data, out, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*all*")} == before
    monkeypatch.setattr(AssignSources, "name_rows", name_rows)
    assert write_shard(other, data, out, overwrite=True).new
    assert pq.read_schema(out).names == [*rows[0], "kind"]
    out.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="all.parquet was not written by colm sources --assign, or has changed"):
        write_shard(other, data, out, overwrite=True)
    assert out.read_bytes() == b"mine"


def test_files_are_those_that_are_data(tmp_path: Path) -> None:
    for name in ("b.parquet", "a.parquet", ".a.parquet", "_c.parquet", "notes.txt"):
        (tmp_path / name).touch()
    names = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    assert find_files(str(tmp_path)) == names
    assert find_files(f"{tmp_path}/?.parquet") == names
    assert divide(names, Part(1, 2)) == [(names[1], None)]
    (tmp_path / "d.jsonl").touch()
    for data, message in [
        (tmp_path, "a.parquet' and .*d.jsonl' are of different kinds"),
        (tmp_path / "notes.txt", "notes.txt' is not a .parquet or .jsonl file"),
        (tmp_path / "x*", "There are no data files .*x.*pattern in quotes"),
    ]:
        with pytest.raises(DataError, match=message):
            find_files(str(data))


def test_what_cannot_be_assigned_is_refused(fitted: Fitted, tmp_path: Path) -> None:
    assigner, rows, _ = fitted
    tables, lines = (write_files(tmp_path / end, rows, f".{end}") for end in ("parquet", "jsonl"))
    pq.write_table(pa.table({"text": ["boat"]}), tmp_path / "text.parquet")
    pq.write_table(pa.table({"a": ["boat"]}), tmp_path / "a.parquet")
    (tmp_path / "bad.jsonl").write_text('{"text": "boat"}\n{"text": "bo')
    (tmp_path / "list.jsonl").write_text('{"prompt": "", "completion": {"a": 1}}\n')
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    (tmp_path / "mixed").mkdir()
    pq.write_table(pa.table({"text": [1]}), tmp_path / "mixed" / "a.parquet")
    pq.write_table(pa.table({"text": ["boat"]}), tmp_path / "mixed" / "b.parquet")
    for data, out, part, message in [
        (tables, "out.jsonl", Part(0, 1), "must end with .parquet, as the data does"),
        (lines, "out.jsonl", Part(0, 4), "--shard 0/4 .*: 3 files, which are not divided. Use at most 3 parts"),
        (tables, "out.parquet", Part(0, 13), "--shard 0/13 .*: 12 row groups in 3 files. Use at most 12 parts"),
        (tables, "parquet/out.parquet", Part(0, 1), "would be part of the data .*parquet'; choose another folder"),
        (tmp_path / "*" / "p*.parquet", "new/p.parquet", Part(0, 1), "would be part of the data"),
        (tmp_path / "a.parquet", "out.parquet", Part(0, 1), "a.parquet: The data has the columns a, which match no"),
        (tmp_path / "bad.jsonl", "out.jsonl", Part(0, 1), "bad.jsonl, line 2, is not valid JSON"),
        (tmp_path / "list.jsonl", "out.jsonl", Part(0, 1), "list.jsonl: A cell is a dict where text is expected"),
        (tmp_path / "bad.parquet", "out.parquet", Part(0, 1), "bad.parquet cannot be read as Parquet"),
        (tmp_path / "mixed", "out.parquet", Part(0, 1), "differ in their columns .text.. Write them with the same"),
        (tmp_path / "text.parquet", "text.parquet", Part(0, 1), "text.parquet was not written by colm sources"),
    ]:
        with pytest.raises((ConfigError, DataError), match=message):
            write_shard(assigner, str(data), tmp_path / out, part=part)
    assert not list(tmp_path.rglob("*out*"))


def test_cells_have_the_text_that_clustering_reads(tmp_path: Path) -> None:
    cells = ["0.50", "7", "true", "null", '"007"', "1e400", '[{"role": "assistant", "content": "a 5"}]', "-0.0"]
    asks = ['[{"role": "user", "content": "a", "name": null}]' if cell[0] == "[" else '"a"' for cell in cells]
    lines = [f'{{"prompt": {ask}, "completion": {cell}}}' for ask, cell in zip(asks, cells, strict=True)]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    table = pa.table(
        {"prompt": [0.1, 1e5, None, 2.5] * 2, "completion": [datetime(2024, 1, day + 1) for day in range(8)]}
    )
    pq.write_table(table.set_column(0, "prompt", table["prompt"].cast(pa.float32())), tmp_path / "cells.parquet")
    texts = []

    def remember(self: AssignSources, held: list[Row]) -> list[str]:
        texts.extend(row.text for row in held)
        return ["cluster-0"] * len(held)

    for name in ("lines.jsonl", "cells.parquet"):
        texts.clear()
        rows = Rows([read_rows(str(tmp_path / name))])
        path = tmp_path / f"{name}.labels.parquet"
        label_rows(Rows([topic_rows(20)]), ClusterConfig(clusters=2), path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AssignSources, "name_rows", remember)
            write_shard(
                AssignSources(centroids_path(path)), str(tmp_path / name), tmp_path / f"out.{name.split('.')[1]}"
            )
        assert texts == [row.text for row in rows.read(0, len(rows))]
        assert len(texts) == 8


def test_rows_without_text_are_counted(fitted: Fitted, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": " "}\n{"text": "boat"}\n{"other": 0}\n')
    with caplog.at_level(logging.WARNING):
        shard = write_shard(fitted[0], str(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl")
    assert (shard.rows, shard.empty) == (3, 2)
    assert "2 of 3 rows have no text" in caplog.text
