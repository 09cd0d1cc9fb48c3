"""A mixture that is read on demand: streams of files and hub data sets, tokenized during reading."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset, interleave_datasets

from colm.errors import DataError, suggest
from colm.lab.data.formats import tokenizer_of_format
from colm.lab.data.held_out import HELD, draw_rows, warn_shared
from colm.lab.data.held_rows import Parts, group_rows, part_keys, write_row
from colm.lab.data.load import column_names, read_entry
from colm.lab.data.prompts import HeldPrompts, prompt_keys
from colm.lab.data.schemas import choose_format
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.lab.data.validation import tokenize_held_out
from colm.mixing import check_names, fixed_shares, temperature_shares
from colm.step.pool import is_learnable
from colm.step.sources import RowsLeft, name_of_row

logger = logging.getLogger(__name__)

TOKENS = ("input_ids", "attention_mask", "labels")

BUFFER = 1000
"""Size of a stream's shuffle buffer, in rows."""

EXTRA = "colm_extra"
"""An internal column of a stream's rows."""


class StreamParts(NamedTuple):
    """Streams of text with their source, before tokenization."""

    parts: list[IterableDataset]
    chances: list[float] | None  # sampling probability of each part; None: uniform

    def take(self, places: Sequence[int]) -> StreamParts:
        """Return a subset of the parts, with probabilities that sum to 1."""
        if len(places) == len(self.parts):
            return self
        chances = [self.chances[place] for place in places] if self.chances else None
        shares = None if chances is None else [chance / sum(chances) for chance in chances]
        return StreamParts([self.parts[place] for place in places], shares)


class StreamedMixture(NamedTuple):
    """A tokenized stream and its first rows."""

    train: IterableDataset
    window: Dataset
    validation: Dataset | None
    held_out: Parts  # text of the validation rows, including those too long to measure
    counts: RowsLeft  # of the rows read until the window was full; rows read again count again


def read_stream(data: DataSettings, entries: Sequence[MixtureEntry]) -> StreamParts:
    """Open every file and hub data set of a mixture.

    With ``data.weights``, each entry is one source, drawn in proportion to its weight. Otherwise entries are drawn in
    proportion to ``data.source_sizes``, with ``data.temperature``, or, without sizes, uniformly.

    Args:
        data: the ``data`` section of a run's configuration.
        entries: the ``mixture`` list.

    Raises:
        DataError: there is nothing to read or no source column, or the weights do not match the entries.
    """
    column = data.source_column
    if entries:
        parts = [read_entry(entry, data, streaming=True) for entry in entries]
        names = [entry.name for entry in entries]
    elif data.train:
        entry = MixtureEntry(data.train, split=data.split, config=data.config)
        parts, names = [read_entry(entry, data, label=False, streaming=True)], []
    else:
        raise DataError("No training data: set data.train, or list sources under mixture.")
    for part in parts:
        columns = column_names(part)
        if column not in columns:
            raise DataError(
                f"The training data has no column {column!r} for the source.{suggest(column, columns)} "
                f"It has: {', '.join(columns)}. Name the right one with data.source_column, or list each file under "
                "mixture."
            )
    weights = data.weights or {name: size for name, size in data.source_sizes.items() if name in names}
    for setting in ("weights", "temperature"):
        if getattr(data, setting) and not names:
            raise DataError(
                f"With a stream, data.{setting} applies to the mixture entries; list each source under mixture."
            )
    if data.temperature is not None:
        missing = [name for name in names if name not in data.source_sizes]
        if missing:
            raise DataError(f"data.temperature needs the rows of {missing[0]!r}; add it to data.source_sizes.")
        weights = temperature_shares({name: data.source_sizes[name] for name in set(names)}, data.temperature)
    if not weights or len(names) < 2:
        return StreamParts(parts, None)
    if not data.weights and len(weights) < len(names):
        return StreamParts(parts, None)
    shares = fixed_shares("data.weights", weights, sorted(set(names)))
    chances = [shares[name] / names.count(name) for name in names]
    held = [place for place, chance in enumerate(chances) if chance > 0]
    return StreamParts([parts[place] for place in held], [chances[place] for place in held])


def prepare_stream(
    stream: StreamParts,
    tokenizer: Any,
    data: DataSettings,
    seed: int,
    *,
    held_out: Parts | None = None,
    by_prompt: bool = True,
) -> StreamedMixture:
    """Tokenize, mix and shuffle the parts, and read the first rows.

    Rows without a labeled token are skipped, and logged by source. Held-out rows come from the first window, see
    `held_out.draw_rows`; rows with their prompts are excluded from training anywhere in the stream. Prompts that a
    validation file shares with the first window are counted and logged.

    Args:
        stream: the parts.
        tokenizer: a fast Hugging Face tokenizer.
        data: the ``data`` section of a run's configuration.
        seed: of the mixing and the held-out rows.
        held_out: the validation rows: those of the ``data.validation`` file, or those that a resumed run held out;
            None to draw them.
        by_prompt: False to draw rows whatever their prompts, as in older versions.

    Raises:
        DataError: no row of the first window has a label, or rows should be held out of a source that does not exist.
    """
    column = data.source_column
    draws = held_out is None and bool(data.validation_rows)
    counts = [_LabelledRows(column) for _ in stream.parts]
    places = _find_labelled(stream, tokenizer, data, counts)
    rows: list[dict[str, Any]] = []
    if places:
        stream = stream.take(places)
        extra = write_row if draws or data.validation else None
        texts = _mix(stream, tokenizer, data, seed, extra, [counts[place] for place in places])
        rows = list(islice(iter(texts), data.window))
    if not rows:
        raise DataError(
            f"No row of the stream has a labeled token within max_length={data.max_length}: completions are empty "
            "or cut off. Raise data.max_length, or check the columns."
        )
    found = _add_up(counts, f"a labeled token within max_length={data.max_length}")
    found.warn()
    _warn_missing(data.source_sizes, found)
    lines = [json.loads(row.pop(EXTRA)) for row in rows if EXTRA in row]
    window = Dataset.from_list(rows)
    keys = [prompt_keys(line["format"], line["row"]) for line in lines]
    if draws:
        wanted = data.validation_rows
        if isinstance(wanted, Mapping):
            check_names("data.validation_rows", wanted, sorted(set(window[column])), found.gone)
        sides = draw_rows(window[column][:], column, wanted, seed, keys if by_prompt else None)
        held_out = group_rows(lines[row] for row in np.flatnonzero(sides == HELD))
    held_out = held_out or []
    if data.validation:
        warn_shared(keys, held_out, data.format, column, among=f"'s first {len(rows):,} rows")
    if held_out and not data.validation:
        prompts = HeldPrompts(keys for part in held_out for keys in part_keys(part, data.format))
        marked = _mix(stream, tokenizer, data, seed, lambda name, row: prompts.meet(prompt_keys(name, row)))
        train = marked.filter(lambda row: not row[EXTRA]).remove_columns([EXTRA])
    else:
        train = _mix(stream, tokenizer, data, seed)
    train = train.shuffle(seed=seed, buffer_size=BUFFER)
    return StreamedMixture(train, window, tokenize_held_out(held_out, tokenizer, data), held_out, found)


def _warn_missing(sizes: Mapping[str, int], found: RowsLeft) -> None:
    for name in sizes:
        if name not in found.before:
            logger.warning(
                "data.source_sizes names %r, but none of the first %d rows of the stream has this source.%s",
                name,
                sum(found.before.values()),
                suggest(name, found.before),
            )


class _LabelledRows:
    """Tests whether a tokenized row has a label, and counts the tested rows by source.

    A copy in a data loader worker counts separately.
    """

    def __init__(self, column: str) -> None:
        self._column = column
        self.asked: Counter[str] = Counter()
        self.labelled: Counter[str] = Counter()

    def __call__(self, row: Mapping[str, Any]) -> bool:
        labelled = is_learnable(row["labels"])
        self.asked[row[self._column]] += 1
        self.labelled[row[self._column]] += labelled
        return labelled

    def begin(self) -> None:
        """Count from 0."""
        self.asked.clear()
        self.labelled.clear()


def _add_up(counts: Sequence[_LabelledRows], need: str) -> RowsLeft:
    asked: Counter[str] = sum((each.asked for each in counts), Counter())
    return RowsLeft(dict(sorted(asked.items())), sum((each.labelled for each in counts), Counter()), need)


Extra = Callable[[str, Mapping[str, Any]], Any]
"""Computes the `EXTRA` cell from a format and a row of text."""


def _find_labelled(
    stream: StreamParts, tokenizer: Any, data: DataSettings, counts: Sequence[_LabelledRows]
) -> list[int]:
    """Return the parts that have a row with a label, and reset their counts.

    `datasets` cannot interleave a part without such a row; the part is read to its end to find out.
    """
    if len(stream.parts) == 1:
        return [0]
    parts = [_tokenize(part, tokenizer, data, None, count) for part, count in zip(stream.parts, counts, strict=True)]
    held = [place for place, part in enumerate(parts) if next(iter(part), None) is not None]
    for place in held:
        counts[place].begin()  # discard the rows read for this check
    return held


def _mix(
    stream: StreamParts,
    tokenizer: Any,
    data: DataSettings,
    seed: int,
    extra: Extra | None = None,
    counts: Sequence[_LabelledRows] | None = None,
) -> IterableDataset:
    """Tokenize and interleave the parts; `counts` count their rows."""
    counts = counts or [_LabelledRows(data.source_column) for _ in stream.parts]
    parts = [_tokenize(part, tokenizer, data, extra, count) for part, count in zip(stream.parts, counts, strict=True)]
    if len(parts) == 1:
        return parts[0]
    mixed = interleave_datasets(parts, probabilities=stream.chances, seed=seed, stopping_strategy="all_exhausted")
    for count in counts:
        count.begin()  # interleaving reads the first rows to find types
    return mixed


def _tokenize(
    part: IterableDataset, tokenizer: Any, data: DataSettings, extra: Extra | None, is_labelled: _LabelledRows
) -> IterableDataset:
    columns, column = column_names(part), data.source_column
    chosen = choose_format(data.format, columns)
    tokenize = tokenizer_of_format(chosen, tokenizer, data.max_length)
    place = part.info.description

    def tokenize_row(row: Mapping[str, Any], number: int) -> dict[str, Any]:
        row = {**dict.fromkeys(columns), **row, column: name_of_row(row.get(column), column, number, file=place)}
        try:
            tokens = {**tokenize(row), column: row[column]}
        except DataError as error:
            raise DataError(f"{place or 'The stream'}, row {number} (the first is 0): {error}") from error
        return tokens if extra is None else {**tokens, EXTRA: extra(chosen, row)}

    # Select columns: a column that appears only in later rows would not be removed.
    kept = [*TOKENS, column] if extra is None else [*TOKENS, column, EXTRA]
    tokens = part.map(tokenize_row, with_indices=True).select_columns(kept)
    return tokens.filter(lambda row: is_labelled(row))  # a function: interleaving copies objects with their counts
