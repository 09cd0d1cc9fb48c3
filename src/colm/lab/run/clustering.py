"""The settings of `sources`: how rows get sources other than their labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colm.errors import ConfigError, suggest
from colm.lab.sources.config import ClusterConfig, SourceRules
from colm.step.sources import name_keys, name_setting

LABELS_NAME = "labels.parquet"
KNOWN = ("cluster", "map", "split", "merge_below", "merged", "labels")


def read_rules(values: Any, data: Mapping[str, Any], seed: int) -> SourceRules:
    """Check the section `sources` of a configuration.

    Args:
        values: the section; a number instead of a clustering is its number of clusters.
        data: the section `data`.
        seed: default seed of clusterings.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, or a stream.
    """
    if not isinstance(values or {}, dict):
        raise ConfigError(f"sources is {values!r}; it must be a mapping such as {{cluster: {{clusters: 16}}}}.")
    given = dict(values or {})
    for key in given:
        if key not in KNOWN:
            raise ConfigError(
                f"Unknown setting {key!r} in sources.{suggest(str(key), KNOWN)} Known: {', '.join(KNOWN)}."
            )
    for key in ("map", "split"):
        if not isinstance(given.get(key) or {}, dict):
            raise ConfigError(f"sources.{key} is {given[key]!r}; it must be a mapping by source.")
    renamed = {
        old: name_setting(f"sources.map.{old}", new)
        for old, new in name_keys("sources.map", given.get("map") or {}).items()
    }
    below = given.get("merge_below") or 0
    if not isinstance(below, int) or isinstance(below, bool) or below < 0:
        raise ConfigError(f"sources.merge_below={below!r} must be a whole number of rows of at least 0.")
    merged = "other" if given.get("merged") is None else name_setting("sources.merged", given["merged"])
    labels = given.get("labels")
    if labels is not None and (not isinstance(labels, str) or Path(labels).suffix != ".parquet"):
        raise ConfigError(
            f"sources.labels is {labels!r}; it must be a .parquet file that colm sources --cluster wrote."
        )
    cluster = given.get("cluster")
    rules = SourceRules(
        cluster=None if cluster is None or cluster is False else _clustering("sources.cluster", cluster, seed),
        map=renamed,
        split={
            name: _clustering(f"sources.split.{name}", inner, seed)
            for name, inner in name_keys("sources.split", given.get("split") or {}).items()
        },
        merge_below=below,
        merged=merged,
        labels=Path(labels) if labels else None,
    )
    if rules.any and data["streaming"]:
        raise ConfigError(
            "sources needs all rows in advance, which a stream does not provide; set data.streaming to false."
        )
    return rules


def _clustering(where: str, values: Any, seed: int) -> ClusterConfig:
    if isinstance(values, int) and not isinstance(values, bool):
        values = {"clusters": values}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where} is {values!r}; it must be a number of clusters, or a mapping such as {{clusters: 16}}."
        )
    try:
        return ClusterConfig.from_dict({"seed": seed, **values})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
