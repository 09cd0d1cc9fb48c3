"""Sources of a mixture: their labels, their sizes, and which of them are small."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from colm.errors import ConfigError, DataError, suggest
from colm.values import text_of_value

logger = logging.getLogger(__name__)


def source_name(label: Any) -> str | None:
    """Return the name of a source that a label stands for, from a file, a column or a setting; None if it is missing.

    Texts are names as they are, numbers and truth values as JSON writes them. Missing are None, NaN and blank texts.

    Raises:
        TypeError: the label is a list, a mapping or another thing without a text of its own.

    >>> [source_name(label) for label in ("no", 0, False, "", " ", None)]
    ['no', '0', 'false', None, None, None]
    """
    name = text_of_value(label)
    return name if name is not None and name.strip() else None


def count_sources(labels: Iterable[Any], column: str = "source") -> dict[str, int]:
    """Count the examples of each source, sources in the order of their names.

    Args:
        labels: the source column, one entry per example.
        column: its name, for messages.

    Raises:
        DataError: an entry is missing or empty, naming the row; or there is no row at all.
    """
    counts: dict[str, int] = {}
    for row, label in enumerate(labels):
        if label is None or not str(label).strip():
            raise DataError(
                f"Row {row} has no source: its {column!r} is {label!r}. Give every row a label, or name another column "
                "with source_column."
            )
        counts[str(label)] = counts.get(str(label), 0) + 1
    if not counts:
        raise DataError(f"There is no row to count sources in (column {column!r}); the data is empty.")
    return dict(sorted(counts.items()))


def find_small_sources(sizes: Mapping[str, int], rule: str | tuple[str, ...]) -> frozenset[str]:
    """Return the sources whose pool rows are all kept.

    Args:
        sizes: examples of each source in the whole data, above 0.
        rule: ``auto`` for those with fewer examples than the uniform share (all examples / number of
            sources), ``none``, or the names.

    Raises:
        ConfigError: a name in the list is no source, with the nearest one.
        DataError: a source is empty.

    Source: CoLM, section 4.1.

    >>> sorted(find_small_sources({"a": 90, "b": 6, "c": 4}, "auto"))
    ['b', 'c']
    """
    empty = [name for name, size in sizes.items() if size <= 0]
    if empty:
        raise DataError(f"The source {empty[0]!r} has no example; remove it from the mixture or give it data.")
    if rule == "none":
        return frozenset()
    if rule == "auto":
        if len(sizes) == 1:
            logger.warning(
                "There is one source only, %r, so none is small: the coreset is medoids of all rows.", next(iter(sizes))
            )
        total = sum(sizes.values())
        return frozenset(name for name, size in sizes.items() if size * len(sizes) < total)
    for name in rule:
        if name not in sizes:
            raise ConfigError(
                f"small_sources names {name!r}, which is no source.{suggest(name, sizes)} "
                f"The sources are: {', '.join(sizes)}."
            )
    return frozenset(rule)


def balance_sources(sizes: Mapping[str, int], balance: float) -> dict[str, float]:
    """Return how much a row of each source counts: its source's share to the power of -balance, 1 in the mean.

    Args:
        sizes: source -> examples in the whole data; empty sources count 1.
        balance: 0 for 1 everywhere; 1 for the same sum for every source.

    >>> balance_sources({"a": 75, "b": 25}, 1.0)
    {'a': 0.666..., 'b': 2.0}
    """
    total = sum(sizes.values())
    raw = {name: (size / total) ** -balance if size else 1.0 for name, size in sizes.items()}
    mean = sum(raw[name] * size for name, size in sizes.items()) / total
    return {name: value / mean for name, value in raw.items()}
