"""Tokenize rows of text: every row that has a label, with the name of its source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Value, concatenate_datasets

from colm.errors import DataError
from colm.lab.data.formats import RowError, tokenizer_of_batch
from colm.lab.data.read import name_row
from colm.lab.data.schemas import choose_format
from colm.step.pool import is_learnable
from colm.step.sources import RowsLeft, count_sources, name_sources

SHARD = 100_000
"""Rows tokenized at a time."""


class UnlabelledError(DataError):
    """None of the rows has a labeled token."""


def tokenize_rows(
    parts: Sequence[Dataset], tokenizer: Any, *, format_name: str, max_length: int, source_column: str
) -> Dataset:
    """Return ``input_ids``, ``attention_mask``, ``labels`` and the source of every row that has a label.

    The number of rows without a label is logged by source.

    Args:
        parts: rows of text; if `format_name` is ``auto``, each part's format is inferred from its columns.
        tokenizer: a fast Hugging Face tokenizer.
        format_name: a key of `formats.COLUMNS`, or ``auto``.
        max_length: tokens.
        source_column: column kept with the tokens.

    Raises:
        DataError: no format fits a part, or none of its rows has a labeled token (`UnlabelledError`).
    """
    options: dict[str, Any] = {"format_name": format_name, "max_length": max_length, "source_column": source_column}
    return tokenize_counted(parts, tokenizer, **options)[0]


def tokenize_counted(
    parts: Sequence[Dataset], tokenizer: Any, *, format_name: str, max_length: int, source_column: str
) -> tuple[Dataset, RowsLeft]:
    """Like `tokenize_rows`, but also return how many rows of each source there were and are left."""
    parts = [name_rows(part, source_column) for part in parts]
    tokens = [_tokenize(part, tokenizer, format_name, max_length, source_column) for part in parts]
    held = [part for part in tokens if part is not None]
    if not held:
        formats = {choose_format(format_name, part.column_names) for part in parts}
        raise UnlabelledError(
            f"None of the {sum(map(len, parts))} rows has a labeled token within max_length={max_length} (format "
            f"{', '.join(sorted(formats))}): completions are empty or cut off. Raise data.max_length, or check the "
            "columns."
        )
    found = concatenate_datasets(held)
    counts = count_left(parts, found, source_column, max_length)
    counts.warn()
    return found, counts


def count_left(parts: Sequence[Dataset], tokens: Dataset, source_column: str, max_length: int) -> RowsLeft:
    """Count the rows of each source before tokenization, and those that are left.

    Args:
        parts: rows of text.
        tokens: the result of `tokenize_rows`.
        source_column: source column of both.
        max_length: tokens.
    """
    before = count_sources((name for part in parts for name in part[source_column][:]), source_column)
    return RowsLeft(before, Counter(tokens[source_column][:]), f"a labeled token within max_length={max_length}")


def _tokenize(rows: Dataset, tokenizer: Any, format_name: str, max_length: int, source_column: str) -> Dataset | None:
    """Return the tokens of a part's rows; None if no row has a label."""
    chosen = choose_format(format_name, rows.column_names)
    tokenize = tokenizer_of_batch(chosen, tokenizer, max_length)

    def tokenize_labelled(columns: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> dict[str, Sequence[Any]]:
        try:
            tokens: dict[str, Sequence[Any]] = {**tokenize(columns), source_column: columns[source_column]}
        except RowError as error:
            raise RowError(numbers[error.row], error.reason) from error
        kept = [row for row, labels in enumerate(tokens["labels"]) if is_learnable(labels)]
        return {name: [values[row] for row in kept] for name, values in tokens.items()}

    shards = []
    for start in range(0, len(rows), SHARD):
        # Tokenize one shard at a time, so that an interrupted run resumes from the cache of `datasets`.
        try:
            shards.append(
                rows.select(range(start, min(start + SHARD, len(rows)))).map(
                    tokenize_labelled,
                    batched=True,
                    with_indices=True,
                    remove_columns=rows.column_names,
                    desc=f"Tokenizing from row {start:,}" if start else "Tokenizing",
                )
            )
        except RowError as error:
            raise DataError(f"{name_row(rows, start + error.row)}: {error.reason}") from error
    held = [shard for shard in shards if len(shard)]
    return concatenate_datasets(held) if held else None


def name_rows(rows: Dataset, column: str, *, file: str = "") -> Dataset:
    """Return the rows with the names of their sources, as text, in place of their labels.

    Args:
        rows: with a column of labels.
        column: the column's name.
        file: the rows' file, for messages.

    Raises:
        DataError: a row has no source.
    """
    names = name_sources(rows.with_format(None)[column][:], column, file=file)  # at once: reading single rows is slow
    if rows.features[column] == Value("string"):
        return rows
    return rows.remove_columns(column).add_column(column, names, feature=Value("string"))
