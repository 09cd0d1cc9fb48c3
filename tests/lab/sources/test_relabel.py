"""Sources are clustered, renamed, split and merged, for training and validation rows alike."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tests.support.topics import topic_rows

from colm.errors import DataError
from colm.lab.sources.config import ClusterConfig, SourceRules
from colm.lab.sources.relabel import Relabelled, relabel_parts, split_path


def relabel(folder: Path, train: list[Dataset], validation: list[Dataset], **rules: Any) -> Relabelled:
    return relabel_parts(train, validation, SourceRules(**rules), folder / "labels.parquet", column="source")


def sources(parts: list[Dataset]) -> list[str]:
    return [name for part in parts for name in part["source"]]


def test_clusters_replace_labels_and_validation_rows_follow(tmp_path: Path) -> None:
    whole = topic_rows(300)
    train, validation = [whole, topic_rows(60, 1, labelled=False)], [topic_rows(60, 2)]
    found = relabel(tmp_path, train, validation, cluster=ClusterConfig(clusters=3))
    assert [len(part) for part in found.train] == [300, 60]
    table: dict[str, Counter[str]] = {}
    for true, name in zip(whole["source"], found.train[0]["source"], strict=True):
        table.setdefault(true, Counter())[name] += 1
    most = {true: counts.most_common(1)[0][0] for true, counts in table.items()}
    agree = [most[t] == n for t, n in zip(validation[0]["source"], found.validation[0]["source"], strict=True)]
    assert sum(agree) >= 0.95 * len(agree)
    assert found.train[0]["prompt"][:] == whole["prompt"][:]
    assert found.labelling is not None


def test_names_are_mapped_before_sources_are_merged(tmp_path: Path) -> None:
    rules: dict[str, Any] = {"map": {"sea": "water"}, "merge_below": 31, "merged": "rest"}
    found = relabel(tmp_path, [topic_rows(100)], [topic_rows(20, 1)], **rules)
    assert Counter(sources(found.train)) == {"farm": 60, "rest": 40}
    assert Counter(sources(found.validation)) == {"farm": 12, "rest": 8}
    assert found.labelling is None
    assert not list(tmp_path.iterdir())


def test_a_large_source_is_split(tmp_path: Path) -> None:
    rows = topic_rows(200)
    mixed = rows.map(lambda row: {"source": "law" if row["source"] == "law" else "a/b"})
    found = relabel(tmp_path, [mixed], [mixed.select(range(50))], split={"a/b": ClusterConfig(clusters=2)})
    assert Counter(sources(found.train)).keys() == {"a/b/cluster-0", "a/b/cluster-1", "law"}
    inner = [name for name, true in zip(sources(found.train), rows["source"], strict=True) if true == "farm"]
    assert Counter(inner).most_common(1)[0][1] > 0.9 * len(inner)
    assert sources(found.validation) == sources(found.train)[:50]
    assert split_path(tmp_path / "labels.parquet", "a/b").exists()
    assert split_path(tmp_path / "labels.parquet", "a/b") != split_path(tmp_path / "labels.parquet", "a-b")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"map": {"see": "water"}}, "sources.map names 'see', which is not a source of the data. Did you mean 'sea'?"),
        ({"split": {"lawn": ClusterConfig(clusters=2)}}, "sources.split names 'lawn'.* Did you mean 'law'?"),
        ({"merge_below": 1000}, "merges all 3 sources, the largest of which has 60 rows"),
        ({"split": {"law": ClusterConfig(clusters=20)}}, "There are 10 rows, fewer than clusters=20"),
    ],
)
def test_invalid_rules_are_rejected(rules: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        relabel(tmp_path, [topic_rows(100)], [], **rules)


def test_rows_without_a_label_need_clusters(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'source'.* or find sources by clustering: sources.cluster"):
        relabel(tmp_path, [topic_rows(100, labelled=False)], [], merge_below=5)


def test_rules_use_label_names_and_need_one_in_every_row(tmp_path: Path) -> None:
    rows = [{"source": i % 3 == 0, "prompt": f"{i}", "completion": "1"} for i in range(9)]
    found = relabel(tmp_path, [Dataset.from_list(rows)], [], map={"true": "third"})
    assert Counter(sources(found.train)) == {"third": 3, "false": 6}
    rows[4]["source"] = None
    with pytest.raises(DataError, match="Row 4 of the training data has no source: its 'source' is None"):
        relabel(tmp_path, [Dataset.from_list(rows)], [], map={"true": "third"})
