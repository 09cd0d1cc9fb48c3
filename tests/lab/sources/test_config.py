"""Clustering settings are validated against their ranges."""

from __future__ import annotations

from typing import Any

import pytest

from colm.errors import ConfigError
from colm.lab.run.settings import resolve_settings


def resolve(sources: Any, **data: Any) -> Any:
    return resolve_settings(
        {"model": "tiny", "output_dir": "x", "seed": 3, "data": {"train": "a.jsonl", **data}, "sources": sources}
    )


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([1], r"sources is \[1\]; it must be a mapping"),
        ({"clusters": 4}, "Unknown setting 'clusters' in sources. Did you mean 'cluster'"),
        ({"cluster": {"k": 4}}, "Unknown setting 'k' in sources.cluster"),
        ({"cluster": "many"}, "sources.cluster.clusters='many' must be a whole number of at least 2, auto, or a range"),
        ({"cluster": 1}, "sources.cluster.clusters=1 must be a whole number of at least 2, auto, or a range"),
        (
            {"cluster": {"clusters": {"least": 4}}},
            "cluster.clusters.most=None must be a whole number of at least 2",
        ),
        ({"cluster": {"clusters": {"least": 4, "most": 4}}}, "least must be below most"),
        ({"cluster": {"clusters": {"least": 1, "most": 4}}}, "clusters.least=1 must be a whole number of at least 2"),
        ({"cluster": {"embedding": "tfid"}}, "embedding='tfid' is not one of 'tfidf'.*Did you mean 'tfidf'"),
        ({"cluster": {"algorithm": "x"}}, "algorithm='x' is not one of 'kmeans', 'minibatch'"),
        ({"cluster": {"positions": 3}}, "positions is 3; it must be one of 'labels', 'all'"),
        ({"cluster": {"dimensions": 0}}, "dimensions=0 must be a whole number of at least 1"),
        ({"cluster": {"sample": 10}}, "sample=10 must be a whole number of at least 100"),
        ({"cluster": {"layer": 1.5}}, "layer=1.5 must be a whole number; 0 is the embedding"),
        ({"cluster": {"encoder": ""}}, "encoder is ''; it must be the name or the folder"),
        ({"split": {"a": 1}}, "sources.split.a.clusters=1 must be"),
        ({"split": ["a"]}, "sources.split is .*; it must be a mapping"),
        ({"map": {"a": None}}, "sources.map.a names the source None; it must be a non-blank string"),
        ({"merge_below": -1}, "sources.merge_below=-1 must be a whole number of at least 0"),
        ({"merged": " "}, "sources.merged names the source ' '; it must be a non-blank string"),
        ({"labels": "labels.csv"}, "sources.labels is 'labels.csv'; it must be a .parquet file"),
    ],
)
def test_bad_values_are_rejected_with_the_range(sources: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(sources)


def test_a_stream_has_no_clusters() -> None:
    with pytest.raises(ConfigError, match="which a stream does not provide; set data.streaming to false"):
        resolve({"cluster": 4}, streaming=True)


def test_good_values_are_resolved_and_can_be_resolved_again() -> None:
    given = {"cluster": 16, "split": {"a": {"clusters": {"least": 2, "most": 5}}}, "map": {"b": "c"}, "merge_below": 9}
    settings = resolve(given)
    assert settings.sources.cluster.clusters == 16
    assert settings.sources.cluster.seed == 3
    assert settings.sources.split["a"].range == (2, 5)
    assert resolve_settings(settings.values).values == settings.values
    assert not resolve(None).sources.any
