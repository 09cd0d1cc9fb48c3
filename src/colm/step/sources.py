"""Sources of a mixture: their names, their sizes, which of them are small, and of which no row is left."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from colm.errors import ConfigError, DataError, suggest
from colm.step.values import text_of_value

logger = logging.getLogger(__name__)

T = TypeVar("T")

NAMED = 20
"""Sources that a message lists one by one."""


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


def name_of_row(label: Any, column: str, row: int, *, of: str = "", file: str = "") -> str:
    """Return the name of a row's source.

    Args:
        label: what the row has in its source column.
        column: the name of that column, for messages.
        row: the row's number, for messages.
        of: what the rows are of, for messages: ``" of the stream"``.
        file: where they stand, for messages.

    Raises:
        DataError: the label is missing, or a list or a mapping; the row and the column are named.
    """
    place = f", in {file}" if file else ""
    try:
        name = source_name(label)
    except TypeError:
        raise DataError(
            f"Row {row}{of} has a {type(label).__name__} as its source: its {column!r} is {str(label)[:80]!r}{place}. "
            "A label is a text, a number, a truth value or a date; name another column with source_column."
        ) from None
    if name is None:
        raise DataError(
            f"Row {row}{of} has no source: its {column!r} is {label!r}{place}. Give every row a label, or name another "
            "column with source_column."
        )
    return name


def name_sources(labels: Iterable[Any], column: str = "source", *, of: str = "", file: str = "") -> list[str]:
    """Return the name of each row's source; the labels are the column `column` from row 0 on. Raises `name_of_row`'s.

    >>> name_sources([1, True, "no"])
    ['1', 'true', 'no']
    """
    return [name_of_row(label, column, row, of=of, file=file) for row, label in enumerate(labels)]


def name_setting(setting: str, label: Any) -> str:
    """Return the name of a source that a setting names.

    Raises:
        ConfigError: the label is missing, or a list or a mapping; the setting is named.
    """
    try:
        name = source_name(label)
    except TypeError:
        name = None
    if name is None:
        raise ConfigError(
            f"{setting} names the source {label!r}; it must be a text that is not blank, a number or a truth value."
        )
    return name


def name_keys(setting: str, values: Mapping[Any, T]) -> dict[str, T]:
    """Return a setting by source with the sources' names as its keys.

    Raises:
        ConfigError: see `name_setting`; or two keys are the same source, as 0 and "0".

    >>> name_keys("data.cap", {0: 5, True: 7, "a": 9})
    {'0': 5, 'true': 7, 'a': 9}
    """
    keys: dict[str, Any] = {}
    for key in values:
        name = name_setting(setting, key)
        if name in keys:
            raise ConfigError(
                f"{setting} has the keys {keys[name]!r} and {key!r}, which are both the source {name!r}; keep one."
            )
        keys[name] = key
    return {name: values[key] for name, key in keys.items()}


def count_sources(labels: Iterable[Any], column: str = "source") -> dict[str, int]:
    """Count the examples of each source, sources in the order of their names.

    Args:
        labels: the source column, one entry per example.
        column: its name, for messages.

    Raises:
        DataError: see `name_of_row`; or there is no row at all.
    """
    counts = Counter(name_sources(labels, column))
    if not counts:
        raise DataError(f"There is no row to count sources in (column {column!r}); the data is empty.")
    return dict(sorted(counts.items()))


class RowsLeft(NamedTuple):
    """How many rows of each source there were, and how many of them have something to learn.

    Attributes:
        before: source -> rows.
        left: source -> rows that can be trained on; sources without one may be missing.
        need: what the other rows lack: ``"a labeled token within max_length=64"``.
    """

    before: Mapping[str, int]
    left: Mapping[str, int]
    need: str

    @property
    def dropped(self) -> dict[str, int]:
        """Source -> rows that are not trained on; only of sources that have any, those without a row left first."""
        lost = {name: rows - self.left.get(name, 0) for name, rows in self.before.items()}
        ranked = sorted((name for name in lost if lost[name]), key=lambda name: (bool(self.left.get(name)), name))
        return {name: lost[name] for name in ranked}

    @property
    def gone(self) -> dict[str, str]:
        """What became of the rows of each source of which none is left, for messages that begin with its name."""
        return {
            name: f"has {rows:,} {'row' if rows == 1 else 'rows'}, but none has {self.need}"
            for name, rows in self.before.items()
            if rows and not self.left.get(name)
        }

    def describe(self) -> dict[str, str]:
        """Say of each source of which rows are dropped how many are."""
        return {
            name: f"{rows:,} of {self.before[name]:,} rows without {self.need}"
            if self.left.get(name)
            else f"{rows:,} {'row' if rows == 1 else 'rows'}, none with {self.need}"
            for name, rows in self.dropped.items()
        }

    def warn(self) -> None:
        """Say in the log how many rows are dropped, by source, and which sources have none left."""
        dropped = self.dropped
        if not dropped:
            return
        shown = [
            f"{name!r} {dropped[name]:,} of {self.before[name]:,}{'' if self.left.get(name) else ' (none is left)'}"
            for name in list(dropped)[:NAMED]
        ]
        if len(dropped) > NAMED:
            shown.append(f"and {len(dropped) - NAMED:,} more sources")
        logger.warning(
            "%d of %d rows have no %s and are dropped: %s.",
            sum(dropped.values()),
            sum(self.before.values()),
            self.need.removeprefix("a "),
            ", ".join(shown),
        )


def find_small_sources(
    sizes: Mapping[str, int], rule: str | tuple[str, ...], gone: Mapping[str, str] | None = None
) -> frozenset[str]:
    """Return the sources whose pool rows are all kept.

    Args:
        sizes: examples of each source in the whole data, above 0.
        rule: ``auto`` for those with fewer examples than the uniform share (all examples / number of
            sources), ``none``, or the names.
        gone: sources of which no row is left, as `RowsLeft.gone`.

    Raises:
        ConfigError: a name in the list is no source, with the nearest one; or no row of it is left, and why.
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
        if gone and name in gone and name not in sizes:
            raise ConfigError(
                f"small_sources names {name!r}, which {gone[name]}. The other sources are: {', '.join(sizes)}."
            )
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
