"""Checks of the settings in `data` that mix sources; `sections` has the type of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from colm.errors import ConfigError
from colm.lab.data.files import source_of_entry
from colm.step.sources import name_keys

BY_SOURCE = ("weights", "source_sizes", "cap", "validation_rows")
"""Settings that may be mappings by source."""


def check_mixing(data: dict[str, Any]) -> None:
    """Check how sources are mixed, and replace keys that are numbers or booleans with source names.

    Raises:
        ConfigError: two keys name the same source, or a stream cannot follow the settings.
    """
    for key in BY_SOURCE:
        if isinstance(data[key], dict):
            data[key] = name_keys(f"data.{key}", data[key])
    if data["streaming"] and data["cap"] is not None:
        raise ConfigError("data.cap needs counted rows, and a stream's rows are not counted; use data.weights.")
    if data["streaming"] and data["train"] == "demo":
        raise ConfigError("data.streaming reads files and hub data sets, not the demo; set it to false.")
    if data["source_sizes"] and not data["streaming"]:
        raise ConfigError("data.source_sizes applies only to streams; leave it out, because colm counts the rows.")


def name_entries(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of `mixture`, with source names in place of numbers and booleans.

    Raises:
        ConfigError: a source is empty, or a list or a mapping.
    """
    return [
        dict(entry) if entry.get("source") is None else {**entry, "source": source_of_entry(entry)} for entry in entries
    ]
