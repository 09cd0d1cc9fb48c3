"""The section `sources`: how rows get sources other than their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colm.errors import ConfigError
from colm.lab.data.settings import DataSettings
from colm.lab.sources.config import ClusterConfig, SourceRules, spell_out
from colm.lab.sources.store import load_labels

LABELS_NAME = "labels.parquet"


def read_rules(values: Any, data: DataSettings, seed: int) -> SourceRules:
    """Read the section `sources` of a configuration.

    Args:
        values: the section; a number instead of a clustering is its number of clusters.
        data: the section `data`.
        seed: default seed of clusterings.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of range, or a stream.
    """
    if isinstance(values, dict):
        values = {**values, "cluster": spell_out(values.get("cluster"), seed)}
        if isinstance(values.get("split"), dict):
            values["split"] = {name: spell_out(inner, seed) for name, inner in values["split"].items()}
    rules = SourceRules.read("sources", values)
    if rules.any and data.streaming:
        raise ConfigError(
            "sources needs all rows in advance, which a stream does not provide; set data.streaming to false."
        )
    return rules


def saved_clustering(path: Path) -> ClusterConfig:
    """Return the settings that made a saved labelling.

    Raises:
        ConfigError: the file does not exist.
        DataError: the file is not a labelling.
    """
    if not path.is_file():
        raise ConfigError(
            f"There is no file {str(path)!r} (sources.labels). Make it with colm sources --cluster DATA --out {path}, "
            "or also set sources.cluster, which creates it."
        )
    held = load_labels(path).settings
    return ClusterConfig.read(
        "sources.cluster", {key: value for key, value in held.items() if key not in ("model", "max_length")}
    )
