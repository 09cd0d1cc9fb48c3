"""The settings of `data` that say how sources are mixed, checked one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from colm.config_checks import require_count
from colm.data.load import source_of_entry
from colm.errors import ConfigError
from colm.sources import name_keys

MIXING_DEFAULTS: dict[str, Any] = {
    "revision": None,  # of a hub data set
    "template": {},  # new column -> text with columns in braces
    "labels": {},  # column -> the texts that its values stand for
    "weights": {},  # source -> weight; with them each source's share of the rows
    "cap": None,  # most rows of a source: one number, or source -> number
    "streaming": False,  # read rows as they are needed
    "source_sizes": {},  # source -> rows, of a stream; default estimated
    "window": 1000,  # first rows of a stream, from which sizes are estimated
}


BY_SOURCE = ("weights", "source_sizes", "cap", "validation_rows")
"""Settings that may be mappings by source."""


def check_mixing(data: dict[str, Any]) -> None:
    """Check how sources are mixed, and put the sources' names in the place of keys that are numbers or truth values.

    Raises:
        ConfigError: a value of the wrong kind or out of range, two keys that are one source, or settings that a stream
            can not follow.
    """
    for key in ("template", "labels", "weights", "source_sizes"):
        if not isinstance(data[key], dict):
            raise ConfigError(f"data.{key} is {data[key]!r}; it must be a mapping.")
    for key in BY_SOURCE:
        if isinstance(data[key], dict):
            data[key] = name_keys(f"data.{key}", data[key])
    for name, text in data["template"].items():
        if not isinstance(text, str):
            raise ConfigError(f"data.template.{name} is {text!r}; it must be a text with columns in braces.")
    for name, texts in data["labels"].items():
        if not isinstance(texts, list | dict):
            raise ConfigError(f"data.labels.{name} is {texts!r}; it must be a list or a mapping of texts.")
    for name, weight in data["weights"].items():
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 <= weight < float("inf"):
            raise ConfigError(f"data.weights.{name}={weight!r} must be a number of at least 0.")
    for key, least in (("cap", 1), ("validation_rows", 0)):
        limits = data[key] if isinstance(data[key], dict) else {"": data[key]}
        for name, count in limits.items():
            if key == "cap" and count is None and not name:
                continue
            require_count(f"data.{key}.{name}".rstrip("."), count, minimum=least)
    for name, count in data["source_sizes"].items():
        require_count(f"data.source_sizes.{name}", count, minimum=1)
    require_count("data.window", data["window"], minimum=1)
    if not isinstance(data["streaming"], bool):
        raise ConfigError(f"data.streaming={data['streaming']!r} must be true or false.")
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
