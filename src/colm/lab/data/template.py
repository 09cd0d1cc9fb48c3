"""Fill prompt and completion templates from a row's columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any

from colm.errors import ConfigError, DataError, suggest
from colm.step.values import text_of_value

Rows = Any
"""A `datasets.Dataset`, or an `IterableDataset`."""


def fill_template(
    rows: Rows, columns: Sequence[str], template: Mapping[str, str], labels: Mapping[str, Any], *, keep: str
) -> Rows:
    """Replace the columns of every row with those of the template.

    Args:
        rows: rows of text and numbers.
        columns: their columns.
        template: new column -> text with other columns' names in braces: ``{prompt: "{sentence} It was"}``.
        labels: column -> the text for each of its values, a list or a mapping.
        keep: the source column, which is kept if present.

    Raises:
        ConfigError: a template is not a valid format string.
        DataError: the template names a column that the data does not have, or a value has no label.
    """
    named = {field for text in template.values() for field in _fields(text)} | set(labels)
    for field in sorted(named):
        if field not in columns:
            raise DataError(
                f"data.template or data.labels names the column {field!r}, which the data does not have."
                f"{suggest(field, columns)} It has: {', '.join(columns)}."
            )

    place = rows.info.description or "The data"

    def fill(row: Mapping[str, Any], number: int) -> dict[str, str]:
        try:
            values = {name: row[name] for name in named}
            values |= {name: _label(name, values[name], texts) for name, texts in labels.items()}
            return {name: _Cells().vformat(text, (), values) for name, text in template.items()}
        except (ValueError, TypeError) as error:
            raise DataError(f"{place}, row {number} (the first is 0): {error}") from error

    removed = [name for name in columns if name not in (keep, *template)]
    return rows.map(fill, with_indices=True, remove_columns=removed)


class _Cells(Formatter):
    """Writes cells as in the file; a cell with a format, such as ``{score:.1f}``, as a number."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """Return the text of a cell."""
        if format_spec:
            return format(float(value) if isinstance(value, str) and _is_number(value) else value, format_spec)
        if isinstance(value, list | dict):
            return json.dumps(value, ensure_ascii=False)
        return text_of_value(value) or ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _fields(text: str) -> list[str]:
    try:
        fields = [field for _, field, _, _ in Formatter().parse(text) if field is not None]
    except ValueError as error:
        raise ConfigError(
            f"The template {text!r} is not a valid format string ({error}); double each literal brace."
        ) from error
    for field in fields:
        if not field.isidentifier():
            raise ConfigError(f"The template {text!r} has {{{field}}}; only column names are allowed in braces.")
    return fields


def _label(name: str, value: Any, texts: Any) -> str:
    pairs = enumerate(texts) if isinstance(texts, list) else texts.items()
    known = {text_of_value(key) or "": text_of_value(text) or "" for key, text in pairs}
    found = known.get(text_of_value(value) or "")
    if found is None:
        raise DataError(
            f"The column {name!r} has the value {value!r}, which data.labels does not map to a text. It maps: {known}."
        )
    return found
