"""Tokenize rows of text: every row that has a label, with the name of its source."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Value, concatenate_datasets

from colm.errors import DataError, DataErrors
from colm.lab.data.columns import read_column
from colm.lab.data.formats import LENGTH, Rendering, RowError, tokenizer_of_batch
from colm.lab.data.progress import advance, advancing, begin
from colm.lab.data.read import name_row
from colm.lab.data.schemas import choose_format
from colm.step import pool, values
from colm.step.pool import TOKENS, is_learnable
from colm.step.sources import RowsLeft, count_sources, name_sources, shorten_names

logger = logging.getLogger(__name__)

SHARD = 100_000
"""Rows tokenized at a time."""

ROW = "row in the shard"
"""Column with the number of a row among those that were tokenized at a time."""


class Tokenized(NamedTuple):
    """The rows of a mixture that have a label to learn."""

    tokens: Dataset  # ``input_ids``, ``attention_mask``, ``labels`` and the source
    counts: RowsLeft  # rows of each source, before and now
    texts: list[Dataset]  # the same rows in the same order as text; parts may differ in format


class UnlabelledError(DataError):
    """None of the rows has a labeled token."""


def tokenize_rows(
    parts: Sequence[Dataset], tokenizer: Any, *, format_name: str, rendering: Rendering, source_column: str
) -> Dataset:
    """Return ``input_ids``, ``attention_mask``, ``labels`` and the source of every row that has a label.

    The number of rows without a label is logged by source.

    Args:
        parts: rows of text; if `format_name` is ``auto``, each part's format is inferred from its columns.
        tokenizer: a fast Hugging Face tokenizer.
        format_name: a key of `schemas.COLUMNS`, or ``auto``.
        rendering: how rows become tokens.
        source_column: column kept with the tokens.

    Raises:
        DataError: no format fits a part, or none of its rows has a labeled token (`UnlabelledError`).
    """
    formats = [choose_format(format_name, part.column_names) for part in parts]
    return _tokenize_parts(parts, formats, tokenizer, rendering, source_column).tokens


def tokenize_counted(
    parts: Sequence[Dataset],
    tokenizer: Any,
    *,
    format_name: str,
    rendering: Rendering,
    source_column: str,
    num_proc: int = 1,
) -> Tokenized:
    """Like `tokenize_rows`, but log the rendering, and also return what is left of the rows, counted and as text.

    With `num_proc` above 1, so many processes share the rows, with the same result.
    """
    formats = [choose_format(format_name, part.column_names) for part in parts]
    say_rendering([(part.info.description or "", name) for part, name in zip(parts, formats, strict=True)], rendering)
    return _tokenize_parts(parts, formats, tokenizer, rendering, source_column, num_proc)


def _tokenize_parts(
    parts: Sequence[Dataset],
    formats: Sequence[str],
    tokenizer: Any,
    rendering: Rendering,
    source_column: str,
    num_proc: int = 1,
) -> Tokenized:
    parts = [name_rows(part, source_column) for part in parts]
    held: list[Dataset] = []
    texts: list[Dataset] = []
    errors = DataErrors()
    begin("Tokenizing", sum(map(len, parts)), "rows")
    for part, name in zip(parts, formats, strict=True):
        with errors.of(part.info.description or ""):
            tokenize = LabelledTokenizer(name, tokenizer, rendering, source_column)
            shards, left = _tokenize(part, tokenize, num_proc)
            held += shards
            texts.append(left)
    errors.report()
    if not held:
        raise UnlabelledError(
            f"None of the {sum(map(len, parts))} rows has {rendering.need} (format "
            f"{', '.join(sorted(set(formats)))}): completions are empty or cut off. Raise data.max_length, or check "
            "the columns."
        )
    found = concatenate_datasets(held)
    counts = count_left(parts, found, source_column, rendering)
    counts.warn()
    if rendering.too_long == "cut":
        _say_cut(found, rendering, source_column)
    return Tokenized(found.remove_columns([LENGTH, ROW]), counts, texts)


def say_rendering(formats: Sequence[tuple[str, str]], rendering: Rendering) -> None:
    """Log how prompts with completions are rendered, and which rows differ.

    Args:
        formats: name and format of each part.
        rendering: how rows become tokens.
    """
    texts, chats, pairs = (
        [name or "the data" for name, kind in formats if kind in kinds]
        for kinds in (("text",), ("messages",), ("prompt_completion", "instruction"))
    )
    if pairs and rendering.chat:
        logger.info("Prompts and completions are rendered with the tokenizer's chat template (data.chat_template).")
    conversations = chats + pairs if rendering.chat else chats
    raw = texts if rendering.chat else texts + pairs
    if conversations and raw:
        logger.warning(
            "Rows differ: those of %s are rendered with the chat template, and those of %s are raw text. Give all rows "
            "as prompts and completions or as messages%s.",
            shorten_names(conversations, "files"),
            shorten_names(raw, "files"),
            "" if rendering.chat else ", and set data.chat_template to auto",
        )


def _say_cut(tokens: Dataset, rendering: Rendering, source_column: str) -> None:
    lengths = tokens.with_format("numpy")[LENGTH][:]
    names = read_column(tokens, source_column)
    cut = Counter(name for name, length in zip(names, lengths, strict=True) if length > rendering.max_length)
    if cut:
        logger.warning(
            "%d of %d rows have more than data.max_length=%d tokens and are cut, which loses the end of their answer: "
            "%s. Raise data.max_length, or set data.too_long to drop or refuse.",
            cut.total(),
            len(lengths),
            rendering.max_length,
            shorten_names([f"{name} ({rows:,})" for name, rows in cut.most_common()]),
        )


def count_left(parts: Sequence[Dataset], tokens: Dataset, source_column: str, rendering: Rendering) -> RowsLeft:
    """Count the rows of each source before tokenization, and those that are left.

    Args:
        parts: rows of text.
        tokens: the result of `tokenize_rows`.
        source_column: source column of both.
        rendering: how rows became tokens.
    """
    before = count_sources((name for part in parts for name in read_column(part, source_column)), source_column)
    return RowsLeft(before, Counter(read_column(tokens, source_column)), rendering.need)


class LabelledTokenizer:
    """Tokenizes columns of rows, and keeps the rows with a label and their sources.

    `datasets` names its cache by the pickled function. A plain function would be pickled with all that its code refers
    to, which takes longer than tokenizing a small data set; this class pickles its arguments and a digest of the code.

    Args:
        format_name: a key of `schemas.COLUMNS`.
        tokenizer: a fast Hugging Face tokenizer.
        rendering: how rows become tokens.
        source_column: column kept with the tokens.
    """

    def __init__(self, format_name: str, tokenizer: Any, rendering: Rendering, source_column: str) -> None:
        self._given = format_name, tokenizer, rendering, source_column
        self._source_column = source_column
        self._tokenize = tokenizer_of_batch(format_name, tokenizer, rendering)

    def __call__(self, columns: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> dict[str, Sequence[Any]]:
        """Return the tokens of a batch of rows; `numbers` are their places in the data, for errors (`RowError`)."""
        try:
            places = {ROW: numbers, self._source_column: columns[self._source_column]}
            tokens = {**self._tokenize(columns), **places}
        except RowError as error:
            raise RowError(numbers[error.row], error.reason) from error
        advance(len(numbers))
        kept = [row for row, labels in enumerate(tokens["labels"]) if is_learnable(labels)]
        # `datasets` stores arrays in the same types as lists, without a look at each token.
        return {
            name: [np.array(held[row]) if name in TOKENS else held[row] for row in kept]
            for name, held in tokens.items()
        }

    def __getstate__(self) -> tuple[Any, ...]:
        return *self._given, digest_code()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state[:-1])  # type: ignore[misc]


@cache
def digest_code() -> str:
    """Return a digest of the code that turns rows into tokens, so that other code finds no cached tokens."""
    files = [*sorted(Path(__file__).parent.glob("*.py")), *(Path(str(module.__file__)) for module in (pool, values))]
    return blake2b(b"".join(path.read_bytes() for path in files), digest_size=16).hexdigest()


def _tokenize(rows: Dataset, tokenize: LabelledTokenizer, num_proc: int) -> tuple[list[Dataset], Dataset]:
    """Return the tokens of a part's rows with a label, their `LENGTH` and `ROW`, in shards; and these rows as text."""
    shards, starts = [], range(0, len(rows), SHARD)
    for start in starts:
        # Tokenize one shard at a time, so that an interrupted run resumes from the cache of `datasets`.
        shard = rows.select(range(start, min(start + SHARD, len(rows))))
        processes = min(num_proc, len(shard))
        try:
            with advancing(len(shard)):  # also if the tokens are in the cache
                shards.append(
                    shard.map(
                        tokenize,
                        batched=True,
                        with_indices=True,
                        remove_columns=rows.column_names,
                        num_proc=processes if processes > 1 else None,  # 1 would start a process, too
                        desc=f"Tokenizing from row {start:,}" if start else "Tokenizing",
                    )
                )
        except RowError as error:
            raise DataError(f"{name_row(rows, start + error.row)}: {error.reason}") from error
    found = [(start, shard) for start, shard in zip(starts, shards, strict=True) if len(shard)]  # others lack columns
    if sum(map(len, shards)) < len(rows):
        left = [start + shard.with_format("numpy")[ROW][:] for start, shard in found]
        rows = rows.select(np.concatenate([np.empty(0, dtype=np.int64), *left]))
    return [shard for _, shard in found], rows


def name_rows(rows: Dataset, column: str, *, file: str = "") -> Dataset:
    """Return the rows with the names of their sources, as text, in place of their labels.

    Args:
        rows: with a column of labels.
        column: the column's name.
        file: the rows' file, for messages.

    Raises:
        DataError: a row has no source.
    """
    names = name_sources(read_column(rows, column), column, file=file)
    if rows.features[column] == Value("string"):
        return rows
    return rows.remove_columns(column).add_column(column, names, feature=Value("string"))
