"""The settings of `data` that say how sources are mixed, checked together; `sections` has the type of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from colm.errors import ConfigError
from colm.lab.data.load import source_of_entry
from colm.step.sources import name_keys

BY_SOURCE = ("weights", "source_sizes", "cap", "validation_rows")
"""Settings that may be mappings by source."""


def check_mixing(data: dict[str, Any]) -> None:
    """Check how sources are mixed, and put the sources' names in the place of keys that are numbers or truth values.

    Raises:
        ConfigError: two keys that are one source, or settings that a stream cannot follow.
    """
    for key in BY_SOURCE:
        if isinstance(data[key], dict):
            data[key] = name_keys(f"data.{key}", data[key])
    if data["streaming"] and data["cap"] is not None:
        raise ConfigError("data.cap needs rows that are counted, which a stream's are not; use data.weights.")
    if data["streaming"] and data["train"] == "demo":
        raise ConfigError("data.streaming reads files and hub data sets, not the demo; set it to false.")
    if data["source_sizes"] and not data["streaming"]:
        raise ConfigError("data.source_sizes are those of a stream; leave them out, the rows are counted.")


def name_entries(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of `mixture`, with the name of each source in the place of a number or truth value.

    Raises:
        ConfigError: a source is empty, or a list or a mapping.
    """
    return [
        dict(entry) if entry.get("source") is None else {**entry, "source": source_of_entry(entry)} for entry in entries
    ]
