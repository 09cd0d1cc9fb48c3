"""Sources of a mixture: their names and sizes, which are small, and which have no rows left."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

from colm.errors import ConfigError, DataError, suggest
from colm.hints import Convert
from colm.step.values import text_of_value

logger = logging.getLogger(__name__)

T = TypeVar("T")

NAMED = 20
"""Largest number of sources that a message lists individually."""


def source_name(label: Any) -> str | None:
    """Return the source name for a label from a file, column or setting; None if the label is missing.

    Strings are used unchanged, numbers and booleans as JSON writes them. None, NaN and blank strings are missing.

    Raises:
        TypeError: the label is a list, a mapping or another object without a text form.

    >>> [source_name(label) for label in ("no", 0, False, "", " ", None)]
    ['no', '0', 'false', None, None, None]
    """
    name = text_of_value(label)
    return name if name is not None and name.strip() else None


def name_of_row(label: Any, column: str, row: int, *, of: str = "", file: str = "") -> str:
    """Return the name of a row's source.

    Args:
        label: the value in the row's source column.
        column: column name, for messages.
        row: row number, for messages.
        of: container of the rows, for messages: ``" of the stream"``.
        file: file of the rows, for messages.

    Raises:
        DataError: the label is missing, a list or a mapping; gives the row and column.
    """
    place = f", in {file}" if file else ""
    try:
        name = source_name(label)
    except TypeError:
        raise DataError(
            f"Row {row}{of} has a {type(label).__name__} as its source: its {column!r} is {str(label)[:80]!r}{place}. "
            "A label must be a string, number, boolean or date. Choose another column with source_column."
        ) from None
    if name is None:
        raise DataError(
            f"Row {row}{of} has no source: its {column!r} is {label!r}{place}. Give every row a label, or choose "
            "another column with source_column."
        )
    return name


def name_sources(labels: Iterable[Any], column: str = "source", *, of: str = "", file: str = "") -> list[str]:
    """Return each row's source name, given the labels of column `column` from row 0 on. Raises as `name_of_row`.

    Equal names are one object, so that the list takes 8 bytes a row.

    >>> name_sources([1, True, "no"])
    ['1', 'true', 'no']
    """
    return [sys.intern(name_of_row(label, column, row, of=of, file=file)) for row, label in enumerate(labels)]


def name_setting(setting: str, label: Any) -> str:
    """Return the name of a source given in a setting.

    Raises:
        ConfigError: the label is missing, a list or a mapping; gives the setting.
    """
    try:
        name = source_name(label)
    except TypeError:
        name = None
    if name is None:
        raise ConfigError(
            f"{setting} names the source {label!r}; it must be a non-blank string, a number or a boolean."
        )
    return name


def name_keys(setting: str, values: Mapping[Any, T]) -> dict[str, T]:
    """Return a per-source setting with its keys converted to source names.

    Raises:
        ConfigError: see `name_setting`; or two keys name the same source, such as 0 and "0".

    >>> name_keys("data.cap", {0: 5, True: 7, "a": 9})
    {'0': 5, 'true': 7, 'a': 9}
    """
    keys: dict[str, Any] = {}
    for key in values:
        name = name_setting(setting, key)
        if name in keys:
            raise ConfigError(
                f"{setting} has the keys {keys[name]!r} and {key!r}, which both name the source {name!r}; keep one."
            )
        keys[name] = key
    return {name: values[key] for name, key in keys.items()}


SourceName = Annotated[
    str, Convert(name_setting, name_keys, {"type": ["string", "number", "boolean"], "pattern": r"\S"})
]
"""A source in a setting; a number or boolean is the source with that label."""


def count_sources(labels: Iterable[Any], column: str = "source") -> dict[str, int]:
    """Count the examples of each source, sorted by source name.

    Args:
        labels: the source column, one entry per example.
        column: column name, for messages.

    Raises:
        DataError: see `name_of_row`; or there are no rows.
    """
    counts = Counter(name_of_row(label, column, row) for row, label in enumerate(labels))
    if not counts:
        raise DataError(f"The data is empty, so there are no sources to count (column {column!r}).")
    return dict(sorted(counts.items()))


class RowsLeft(NamedTuple):
    """Row counts per source, before and after dropping rows without a labeled token.

    Attributes:
        before: source -> rows.
        left: source -> trainable rows; sources without any may be missing.
        need: what the dropped rows lack: ``"a labeled token within max_length=64"``.
    """

    before: Mapping[str, int]
    left: Mapping[str, int]
    need: str

    @property
    def dropped(self) -> dict[str, int]:
        """Source -> dropped rows, for sources that have any; sources with no rows left come first."""
        lost = {name: rows - self.left.get(name, 0) for name, rows in self.before.items()}
        ranked = sorted((name for name in lost if lost[name]), key=lambda name: (bool(self.left.get(name)), name))
        return {name: lost[name] for name in ranked}

    @property
    def gone(self) -> dict[str, str]:
        """Source -> why no rows are left, for messages that begin with the source's name."""
        return {
            name: f"has {rows:,} {'row' if rows == 1 else 'rows'}, but none has {self.need}"
            for name, rows in self.before.items()
            if rows and not self.left.get(name)
        }

    def describe(self) -> dict[str, str]:
        """Return a text for each source with dropped rows that says how many."""
        return {
            name: f"{rows:,} of {self.before[name]:,} rows without {self.need}"
            if self.left.get(name)
            else f"{rows:,} {'row' if rows == 1 else 'rows'}, none with {self.need}"
            for name, rows in self.dropped.items()
        }

    def warn(self) -> None:
        """Log how many rows are dropped per source, and which sources have none left."""
        dropped = self.dropped
        if not dropped:
            return
        shown = [
            f"{name!r} {dropped[name]:,} of {self.before[name]:,}{'' if self.left.get(name) else ' (none is left)'}"
            for name in dropped
        ]
        logger.warning(
            "%d of %d rows have no %s and are dropped: %s.",
            sum(dropped.values()),
            sum(self.before.values()),
            self.need.removeprefix("a "),
            shorten_names(shown),
        )


def shorten_names(names: Sequence[str], what: str = "sources") -> str:
    """Return names as one text, the first `NAMED` of them."""
    more = [f"and {len(names) - NAMED:,} more {what}"] if len(names) > NAMED else []
    return ", ".join([*names[:NAMED], *more])


def find_small_sources(
    sizes: Mapping[str, int], rule: str | tuple[str, ...], gone: Mapping[str, str] | None = None
) -> frozenset[str]:
    """Return the small sources, whose pool rows are all kept.

    Args:
        sizes: examples of each source in the whole dataset, above 0.
        rule: ``auto`` for sources with fewer examples than the uniform share (all examples / number
            of sources), ``none``, or a list of names.
        gone: sources with no rows left, see `RowsLeft.gone`.

    Raises:
        ConfigError: a listed name is not a source (suggests the closest one), or the source has no rows left.
        DataError: a source is empty.

    Source: CoLM, section 4.1.

    >>> sorted(find_small_sources({"a": 90, "b": 6, "c": 4}, "auto"))
    ['b', 'c']
    """
    empty = [name for name, size in sizes.items() if size <= 0]
    if empty:
        raise DataError(f"The source {empty[0]!r} has no examples; remove it from the mixture, or add data.")
    if rule == "none":
        return frozenset()
    if rule == "auto":
        total = sum(sizes.values())
        return frozenset(name for name, size in sizes.items() if size * len(sizes) < total)
    for name in rule:
        if gone and name in gone and name not in sizes:
            raise ConfigError(
                f"small_sources names {name!r}, which {gone[name]}. The other sources are: {', '.join(sizes)}."
            )
        if name not in sizes:
            raise ConfigError(
                f"small_sources names {name!r}, which is not a source.{suggest(name, sizes)} "
                f"The sources are: {', '.join(sizes)}."
            )
    return frozenset(rule)


def find_small_seen(sizes: Mapping[str, int], rule: str | tuple[str, ...]) -> frozenset[str]:
    """Return `find_small_sources` of sizes in which a source may have no example, as in what a stream has shown."""
    held = {name: size for name, size in sizes.items() if size} or sizes
    return find_small_sources(held, rule, {name: "has no example" for name in sizes if name not in held})


def warn_of_sizes(sizes: Mapping[str, int], rule: str | tuple[str, ...]) -> None:
    """Log that the rule for small sources does nothing, with a single source, or too much, with balanced ones."""
    if rule != "auto":
        return
    sizes = {name: size for name, size in sizes.items() if size}
    if len(sizes) == 1:
        logger.warning("The only source is %r, so none is small and no row is kept for its source.", next(iter(sizes)))
    elif are_balanced(sizes) and len(set(sizes.values())) > 1:
        logger.warning(
            "The sources have from %d to %d rows, so the rule for small sources keeps all rows of some that are hardly "
            "smaller than others, and few of those. Set selection.small_sources to none, unless this is wanted.",
            min(sizes.values()),
            max(sizes.values()),
        )


def are_balanced(sizes: Mapping[str, int]) -> bool:
    """Return whether sources differ by less than a factor of 2.

    >>> are_balanced({"a": 63, "b": 62}), are_balanced({"a": 20, "b": 10})
    (True, False)
    """
    return max(sizes.values()) < 2 * min(sizes.values())


def balance_sources(sizes: Mapping[str, int], balance: float) -> dict[str, float]:
    """Return each source's row weight: the source's share to the power of -balance, with mean 1 over rows.

    Args:
        sizes: source -> examples in the whole dataset; rows of empty sources get the unnormalized weight 1.
        balance: 0 gives every row weight 1; 1 gives every source the same total weight.

    >>> balance_sources({"a": 75, "b": 25}, 1.0)
    {'a': 0.666..., 'b': 2.0}
    """
    total = sum(sizes.values())
    raw = {name: (size / total) ** -balance if size else 1.0 for name, size in sizes.items()}
    mean = sum(raw[name] * size for name, size in sizes.items()) / total
    return {name: value / mean for name, value in raw.items()}
