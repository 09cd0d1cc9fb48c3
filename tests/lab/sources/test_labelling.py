"""Clusters are found, saved, resumed and assigned to new rows; mismatches are rejected."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from sklearn.metrics import adjusted_rand_score
from tests.support.topics import topic_rows

from colm.errors import ConfigError, DataError
from colm.lab.sources import labelling
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.embed import TfidfEmbedder
from colm.lab.sources.labelling import assign_rows, label_rows
from colm.lab.sources.rows import Rows
from colm.lab.sources.store import centroids_path

THREE = ClusterConfig(clusters=3)


def texts(*held: str) -> Rows:
    return Rows([Dataset.from_dict({"text": list(held)})])


def test_clusters_are_the_topics_and_named_by_size(tmp_path: Path) -> None:
    rows = topic_rows(300)
    found = label_rows(Rows([rows]), THREE, tmp_path / "labels.parquet")
    assert adjusted_rand_score(rows["source"][:], found.names) > 0.9
    sizes = [found.names.count(f"cluster-{number}") for number in range(3)]
    assert sizes == sorted(sizes, reverse=True)
    table = pq.read_table(tmp_path / "labels.parquet")
    assert table["row"].to_pylist() == list(range(300))
    assert table["source"].to_pylist() == found.names
    assert not (tmp_path / "labels.parquet.partial").exists()


def test_the_same_seed_gives_the_same_clusters(tmp_path: Path) -> None:
    rows = Rows([topic_rows(300)])
    one, two = (label_rows(rows, THREE, tmp_path / name / "labels.parquet") for name in "ab")
    assert one.names == two.names
    held = [np.load(centroids_path(tmp_path / name / "labels.parquet"))["points"] for name in "ab"]
    np.testing.assert_array_equal(*held)


def test_a_saved_labeling_is_reused_for_any_row_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, path = topic_rows(200), tmp_path / "labels.parquet"
    first = label_rows(Rows([rows]), THREE, path)
    monkeypatch.setattr(labelling, "make_embedder", lambda *_: pytest.fail("embedded again"))
    turned = label_rows(Rows([rows.select(range(199, 99, -1)), rows.select(range(100))]), THREE, path)
    assert turned.names == first.names[:99:-1] + first.names[:100]
    assert turned.new == 0


def test_new_rows_go_to_the_nearest_centroid(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    old, new = topic_rows(200), topic_rows(100, seed=1)
    label_rows(Rows([old]), THREE, path)
    before = path.read_bytes()
    found = label_rows(Rows([old, new]), THREE, path)
    assert found.new == len(set(map(str, new)) - set(map(str, old)))
    true = old["source"][:] + new["source"][:]
    assert adjusted_rand_score(true, found.names) > 0.9
    assert path.read_bytes() == before
    assert assign_rows(Rows([new]), THREE, path) == found.names[200:]
    whole = centroids_path(path).read_bytes()
    broken = [whole[:0], whole[:-100], whole[: len(whole) // 2]]
    broken += [whole[:at] + b"\xff" * 5 + whole[at + 5 :] for at in (0, len(whole) // 2, len(whole) - 20)]
    for damaged in broken:
        centroids_path(path).write_bytes(damaged)
        with pytest.raises(DataError, match="lacks some of the rows, and .*centroids.npz.*Restore that file"):
            label_rows(Rows([old, new]), THREE, path)
    centroids_path(path).unlink()
    with pytest.raises(DataError, match="lacks some of the rows, and .*centroids.npz.*Restore that file"):
        label_rows(Rows([old, new]), THREE, path)


def test_an_interrupted_labeling_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, path = Rows([topic_rows(300)]), tmp_path / "labels.parquet"
    whole = label_rows(rows, THREE, tmp_path / "whole" / "labels.parquet")
    monkeypatch.setattr(TfidfEmbedder, "chunk", 100)
    embed, fit, calls = TfidfEmbedder.embed, TfidfEmbedder.fit, []

    def stop_at_the_third(self: Any, held: Any) -> Any:
        calls.append(len(held))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(self, held)

    monkeypatch.setattr(TfidfEmbedder, "embed", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        label_rows(rows, THREE, path)
    monkeypatch.setattr(TfidfEmbedder, "fit", lambda self, held: pytest.fail("fitted again"))
    assert label_rows(rows, THREE, path).names == whole.names
    assert calls == [100] * 4
    monkeypatch.setattr(TfidfEmbedder, "fit", fit)
    shutil.rmtree(tmp_path / "whole")

    calls.clear()
    other = tmp_path / "other.parquet"
    with pytest.raises(KeyboardInterrupt):
        label_rows(rows, THREE, other)
    assert set(label_rows(rows, ClusterConfig(clusters=2), other).names) == {"cluster-0", "cluster-1"}
    assert len(calls) == 6  # other settings: nothing of the first is used


def test_other_settings_or_data_are_rejected_or_clustered_again(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    rows = Rows([topic_rows(200)])
    label_rows(rows, THREE, path)
    four = ClusterConfig(clusters=4)
    with pytest.raises(ConfigError, match="made with other settings \\(clusters=3, not 4\\). Delete it"):
        label_rows(rows, four, path)
    with pytest.raises(DataError, match="does not fit the data: .*200 rows and has 0% of the 2 here, below 50%"):
        label_rows(texts("one row", "another row"), THREE, path)
    before = label_rows(rows, THREE, path)
    assert len(set(label_rows(rows, four, path, renew=True).names)) == 4
    assert len(set(label_rows(rows, four, path).names)) == 4
    kept = label_rows(rows, THREE, path)  # the replaced labeling is found again by its settings
    assert kept.names == before.names
    assert kept.path != path
    assert assign_rows(rows, THREE, kept.path) == before.names


@pytest.mark.parametrize(
    "name", ["labels.parquet", "labels.parquet.lock", "labels.centroids.npz", "labels.parquet.partial/plan.txt"]
)
def test_foreign_files_are_kept(tmp_path: Path, name: str) -> None:
    theirs = tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_bytes(b"mine")
    with pytest.raises((ConfigError, DataError), match="mine|colm"):
        label_rows(Rows([topic_rows(50)]), THREE, tmp_path / "labels.parquet", renew=True)
    assert theirs.read_bytes() == b"mine"


def test_an_unused_setting_may_differ(tmp_path: Path) -> None:
    rows, path = Rows([topic_rows(100)]), tmp_path / "labels.parquet"
    label_rows(rows, THREE, path)
    label_rows(rows, ClusterConfig(clusters=3, layer=2), path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a b", "c d"], "There are 2 rows, fewer than clusters=3. .* at most 2"),
        (["a b"] * 5, "All 5 rows have the same text, so there is nothing to cluster"),
        (["a b"] * 50 + ["c d"], "There are 51 rows with 2 distinct texts, fewer than clusters=3"),
        (["1 + 2", "3 + 4", "5 + 6", "7 + 8"], "1 distinct embeddings .tfidf., fewer than clusters=3"),
        (["a b", "  ", "c", "", "d"], "Row 1 has no text to cluster \\(2 of 5 rows are empty\\)"),
    ],
)
def test_bad_data_is_rejected(rows: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        label_rows(texts(*rows), THREE, tmp_path / "labels.parquet")
    assert not (tmp_path / "labels.parquet").exists()


def test_a_file_of_another_kind_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    topic_rows(20).to_parquet(path)
    with pytest.raises(DataError, match="is not a label file written by this version of colm"):
        label_rows(Rows([topic_rows(20)]), THREE, path)
