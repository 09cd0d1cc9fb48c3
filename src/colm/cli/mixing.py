"""The settings of `data` that say how sources are mixed, checked together; `sections` has the type of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from colm.errors import ConfigError


def check_mixing(data: Mapping[str, Any]) -> None:
    """Check how sources are mixed.

    Raises:
        ConfigError: settings that a stream can not follow.
    """
    if data["streaming"] and data["cap"] is not None:
        raise ConfigError("data.cap needs rows that are counted, which a stream's are not; use data.weights.")
    if data["streaming"] and data["train"] == "demo":
        raise ConfigError("data.streaming reads files and hub data sets, not the demo; set it to false.")
    if data["source_sizes"] and not data["streaming"]:
        raise ConfigError("data.source_sizes are those of a stream; leave them out, the rows are counted.")
