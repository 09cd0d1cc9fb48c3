"""Read a mixture from files and hubs, and turn it into tokens with one source per row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from datasets import Dataset

from colm.errors import DataError, DataErrors, suggest
from colm.lab.data.demo import demo_rows
from colm.lab.data.held_out import hold_out, leave_out, warn_shared
from colm.lab.data.held_rows import part_keys
from colm.lab.data.mix import cap_rows, weigh_rows
from colm.lab.data.progress import advance, begin
from colm.lab.data.read import read_rows
from colm.lab.data.schemas import choose_format, recognize_columns
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.lab.data.template import fill_template
from colm.lab.data.tokenize import name_rows

logger = logging.getLogger(__name__)


class Mixture(NamedTuple):
    """Rows of text, each with its source, before tokenization. The parts may differ in format."""

    train: list[Dataset]
    validation: list[Dataset]  # empty without validation data


Relabel = Callable[[list[Dataset], list[Dataset]], tuple[list[Dataset], list[Dataset]]]
"""Replaces the sources of training and validation parts."""


def read_mixture(
    data: DataSettings,
    entries: Sequence[MixtureEntry],
    seed: int,
    relabel: Relabel | None = None,
    *,
    by_prompt: bool = True,
) -> Mixture:
    """Read training and validation rows, each with its ``source``.

    No training row shares a prompt with a held-out row, see `held_out.draw_rows`. If the validation data is a separate
    file, the prompts that it shares with the training data are counted and logged.

    Args:
        data: the ``data`` section of a run's configuration.
        entries: the ``mixture`` list; each entry's rows are one source.
        seed: seed of the held-out split and of the demo's generators.
        relabel: assigns sources before rows are held out, capped or weighted; None to keep the existing ones.
        by_prompt: False to hold out rows whatever their prompts, as in older versions.

    Raises:
        DataError: nothing to read, a missing column, a row without a source.
    """
    column = data.source_column
    validation: list[Dataset] = []
    if entries:
        _require_distinct(entries)
        train = read_entries(entries, data)
    elif data.train == "demo":
        if isinstance(data.validation_rows, Mapping):
            raise DataError(
                "The demo holds out the same number of rows of each source; data.validation_rows must be a number."
            )
        train = [demo_rows(data.demo_rows, seed)]
        validation = [demo_rows(data.demo_rows, seed, held_out=data.validation_rows or 1)]
    elif data.train:
        train = [read_entry(MixtureEntry(data.train, split=data.split, config=data.config), data, label=False)]
    else:
        raise DataError("No training data: set data.train, or list sources under mixture.")
    if data.validation:
        validation = read_validation(data, labelled=relabel is None)
    if relabel is not None:
        train, validation = relabel(train, validation)
    files = [entry.path for entry in entries] or [str(data.train)]
    train = [_require_sources(part, column, "training", file) for part, file in zip(train, files, strict=True)]
    format_name = data.format
    if not validation and data.validation_rows:
        options: dict[str, Any] = {"format_name": format_name, "by_prompt": by_prompt}
        train, validation = hold_out(train, column, data.validation_rows, seed, **options)
    elif data.train == "demo" and not data.validation and by_prompt:
        train = leave_out(train, validation, format_name, column)  # the demo draws its tasks with replacement
    if data.validation or not by_prompt:
        keys = (keys for part in train for keys in part_keys(part, format_name))
        what = "data.validation" if data.validation else "What this run of an older version holds out"
        warn_shared(keys, validation, format_name, column, what=what)
    if data.cap is not None:
        train = cap_rows(train, column, data.cap, seed)
    if data.weights or data.temperature is not None:
        train = weigh_rows(train, column, data.weights, seed, data.temperature)
    return Mixture(train, validation)


def read_validation(data: DataSettings, *, labelled: bool = True) -> list[Dataset]:
    """Read the data that ``data.validation`` names, if any; with `labelled`, every row must have a source.

    Raises the same errors as `read_mixture`.
    """
    if not data.validation:
        return []
    entry = MixtureEntry(data.validation, split=data.validation_split, config=data.config)
    rows = read_entry(entry, data, label=False)
    return [_require_sources(rows, data.source_column, "validation", data.validation) if labelled else rows]


def _require_distinct(entries: Sequence[MixtureEntry]) -> None:
    """Reject two entries whose sources would be merged only because their files have the same name."""
    stems: dict[str, str] = {}
    for entry in entries:
        if entry.source is None:
            if entry.name in stems:
                raise DataError(
                    f"The mixture entries {stems[entry.name]!r} and {entry.path!r} would both be named {entry.name!r}; "
                    "give each a source of its own (or the same one, to merge them)."
                )
            stems[entry.name] = entry.path


def read_entries(entries: Sequence[MixtureEntry], data: DataSettings, *, streaming: bool = False) -> list[Any]:
    """Read every entry of a mixture, see `read_entry`. Raises DataError, which names all entries that have errors."""
    errors, rows = DataErrors(), []
    begin("Reading the data", len(entries), "files")
    for number, entry in enumerate(entries):
        with errors.of(entry.path, f"mixture[{number}]"):
            rows.append(read_entry(entry, data, streaming=streaming))
        advance()
    errors.report()
    return rows


def read_entry(entry: MixtureEntry, data: DataSettings, *, label: bool = True, streaming: bool = False) -> Any:
    """Read one entry of a mixture: rows with colm's column names and their source.

    Args:
        entry: what to read; missing keys default to `data`.
        data: the ``data`` section of a run's configuration.
        label: name the source after the entry, if its rows have no label of their own.
        streaming: return a stream.

    Raises:
        DataError: the rows cannot be read, or a column is missing.
    """
    entry = entry.applied_to(data)
    rows = read_rows(
        entry.path, split=entry.split or "train", config=entry.config, revision=entry.revision, streaming=streaming
    )
    column = data.source_column
    rows = _rename(rows, entry.columns or {})
    if entry.template:
        rows = fill_template(rows, column_names(rows), entry.template, entry.labels or {}, keep=column)
    else:
        rows = _recognize(rows, entry.path)
    present = column_names(rows)
    choose_format(data.format, present)
    if not label or (column in present and entry.source is None):
        return rows  # its own labels
    if streaming:
        return rows.map(lambda row: {column: entry.name})
    if column in present:
        rows = rows.remove_columns(column)
    return rows.add_column(column, [entry.name] * len(rows))


def column_names(rows: Any) -> list[str]:
    """Return the columns of a data set, or of a stream's first row."""
    if rows.column_names is None:
        return list(next(iter(rows), {}))
    return list(rows.column_names)


def _recognize(rows: Any, path: str) -> Any:
    """Give the columns of common data sets colm's names."""
    found = recognize_columns(column_names(rows), next(iter(rows), {}))
    if found:
        logger.info("%s: %s.", path, ", ".join(f"{column!r} is read as {wanted!r}" for wanted, column in found.items()))
    return rows.rename_columns({column: wanted for wanted, column in found.items()}) if found else rows


def _rename(rows: Any, columns: Mapping[str, str]) -> Any:
    """Apply data.columns, which maps colm's names to those in the data."""
    for wanted, present in columns.items():
        check_rename(wanted, present, column_names(rows))
        if wanted != present:
            rows = rows.rename_column(present, wanted)
    return rows


def check_rename(wanted: str, present: str, names: Sequence[str]) -> None:
    """Raise DataError if a column of these names cannot be renamed from `present` to `wanted` by data.columns."""
    if present not in names:
        raise DataError(
            f"data.columns maps {wanted!r} to {present!r}, which the data does not have."
            f"{suggest(present, names)} It has: {', '.join(names)}."
        )
    if wanted != present and wanted in names:
        raise DataError(
            f"data.columns maps {wanted!r} to {present!r}, but the data already has a column {wanted!r}; rename "
            "one of them in the data."
        )


def _require_sources(rows: Dataset, column: str, what: str, file: str) -> Dataset:
    """Return the rows with the names of their sources."""
    if column not in rows.column_names:
        raise DataError(
            f"The {what} data has no column {column!r} for the source.{suggest(column, rows.column_names)} "
            f"It has: {', '.join(rows.column_names)}. Name the right one with data.source_column, or list each "
            "file under mixture."
        )
    return name_rows(rows, column, file=file)
