"""The section `sources`: how rows get sources other than their labels."""

from __future__ import annotations

from typing import Any

from colm.errors import ConfigError
from colm.lab.data.settings import DataSettings
from colm.lab.sources.config import SourceRules, spell_out

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
