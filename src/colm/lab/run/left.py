"""Checks for settings that name a source with no rows left to train on."""

from __future__ import annotations

import logging

from colm.lab.run.settings import RunSettings
from colm.step.sources import RowsLeft, find_small_sources

logger = logging.getLogger(__name__)


def check_left(settings: RunSettings, counts: RowsLeft) -> None:
    """Log which settings name a source with no rows left.

    Args:
        settings: the run's settings.
        counts: rows of each source in the drawn mixture, and those with a label.

    Raises:
        ConfigError: `small_sources` lists such a source, or one that does not exist.
    """
    data, gone = settings.data, counts.gone
    rule = settings.selection.small_sources
    if not isinstance(rule, str):
        left = {name: rows for name, rows in sorted(counts.left.items()) if rows}
        find_small_sources(data.source_sizes or left, rule, gone)
    by_source = {f"data.{key}": getattr(data, key) for key in ("cap", "weights", "validation_rows", "source_sizes")}
    by_source["sources.map"] = dict.fromkeys(settings.sources.map.values())
    for setting, names in by_source.items():
        for name in names if isinstance(names, dict) else ():
            if name in gone:
                logger.warning("%s names %r, which %s, so nothing of it is trained on.", setting, name, gone[name])
