"""A mixture that is read as it is needed: streams of files and hub data sets, tokenised on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset, interleave_datasets

from colm.batch import IGNORE
from colm.data.files import split_ending
from colm.data.formats import detect_format, tokenizer_of_format
from colm.data.held_out import HELD, draw_rows, warn_shared
from colm.data.held_rows import Parts, group_rows, part_keys, write_row
from colm.data.load import column_names, read_entry
from colm.data.mix import share_of_weights
from colm.data.prompts import HeldPrompts, prompt_keys
from colm.data.validation import tokenize_held_out
from colm.errors import DataError, suggest

TOKENS = ("input_ids", "attention_mask", "labels")

BUFFER = 1000
"""Rows that a stream is shuffled among."""

EXTRA = "colm_extra"
"""A column that rows of a stream have on their way."""


class StreamParts(NamedTuple):
    """Streams of text with their source, before tokenisation."""

    parts: list[IterableDataset]
    chances: list[float] | None  # of each part; None: all the same


class StreamedMixture(NamedTuple):
    """A tokenised stream, and its first rows."""

    train: IterableDataset
    window: Dataset
    validation: Dataset | None
    held_out: Parts  # the text of the validation rows, those too long to be measured included


def read_stream(data: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> StreamParts:
    """Open every file and hub data set of a mixture.

    With ``data.weights`` each entry is one source, drawn with the chance of its weight; else with that of its
    ``data.source_sizes``; else all entries are drawn alike.

    Args:
        data: the ``data`` section of a run's configuration.
        entries: the ``mixture`` list.

    Raises:
        DataError: nothing to read, no source column, or weights that do not fit the entries.
    """
    column = data["source_column"]
    if entries:
        parts = [read_entry(entry, data, streaming=True) for entry in entries]
        names = [str(entry.get("source") or split_ending(str(entry["path"]))[0]) for entry in entries]
    elif data["train"]:
        entry = {"path": data["train"], "split": data["split"], "config": data["config"]}
        parts, names = [read_entry(entry, data, label=False, streaming=True)], []
    else:
        raise DataError("There is nothing to train on: set data.train, or list sources under mixture.")
    for part in parts:
        columns = column_names(part)
        if column not in columns:
            raise DataError(
                f"The training data has no column {column!r} for the source.{suggest(column, columns)} "
                f"It has: {', '.join(columns)}. Name the right one with data.source_column, or list each file under "
                "mixture."
            )
    weights = data["weights"] or {name: size for name, size in data["source_sizes"].items() if name in names}
    if data["weights"] and not names:
        raise DataError("data.weights of a stream choose among the entries of mixture; list each source there.")
    if not weights or len(names) < 2:
        return StreamParts(parts, None)
    if not data["weights"] and len(weights) < len(names):
        return StreamParts(parts, None)
    shares = share_of_weights(weights, sorted(set(names)))
    chances = [shares[name] / names.count(name) for name in names]
    held = [(part, chance) for part, chance in zip(parts, chances, strict=True) if chance > 0]
    return StreamParts([part for part, _ in held], [chance for _, chance in held])


def prepare_stream(
    stream: StreamParts,
    tokenizer: Any,
    data: Mapping[str, Any],
    seed: int,
    *,
    held_out: Parts | None = None,
    by_prompt: bool = True,
) -> StreamedMixture:
    """Tokenise, mix and shuffle the parts, and read the first rows.

    Rows without a labelled token are passed over. Held-out rows come from the first window, drawn as
    `held_out.draw_rows` says; rows with their prompts are not trained on, wherever in the stream they come. Prompts
    that a validation file shares with the first window are counted and logged.

    Args:
        stream: the parts.
        tokenizer: a fast Hugging Face tokenizer.
        data: the ``data`` section of a run's configuration.
        seed: of the mixing, and of the held-out rows.
        held_out: the validation rows: of the file that ``data.validation`` names, or those that a run which goes on
            held out; None to draw them.
        by_prompt: False to draw rows whatever their prompts, as older versions did.

    Raises:
        DataError: no row of the first window has a label, or held-out rows are asked of a source that is not there.
    """
    column = data["source_column"]
    draws = held_out is None and bool(data["validation_rows"])
    plain = _mix(stream, tokenizer, data, seed)
    texts = _mix(stream, tokenizer, data, seed, write_row) if draws or data["validation"] else plain
    rows = list(islice(iter(texts), data["window"]))
    if not rows:
        raise DataError(
            f"No row of the stream has a labelled token within max_length={data['max_length']}: completions are empty "
            "or cut off. Raise data.max_length, or check the columns."
        )
    lines = [json.loads(row.pop(EXTRA)) for row in rows if EXTRA in row]
    window = Dataset.from_list(rows)
    keys = [prompt_keys(line["format"], line["row"]) for line in lines]
    if draws:
        sides = draw_rows(window[column][:], column, data["validation_rows"], seed, keys if by_prompt else None)
        held_out = group_rows(lines[row] for row in np.flatnonzero(sides == HELD))
    held_out = held_out or []
    if data["validation"]:
        warn_shared(keys, held_out, data["format"], column, among=f"'s first {len(rows):,} rows")
    elif held_out:
        prompts = HeldPrompts(keys for part in held_out for keys in part_keys(part, data["format"]))
        marked = _mix(stream, tokenizer, data, seed, lambda name, row: prompts.meet(prompt_keys(name, row)))
        plain = marked.filter(lambda row: not row[EXTRA]).remove_columns([EXTRA])
    train = plain.shuffle(seed=seed, buffer_size=BUFFER)
    return StreamedMixture(train, window, tokenize_held_out(held_out, tokenizer, data), held_out)


def _mix(
    stream: StreamParts,
    tokenizer: Any,
    data: Mapping[str, Any],
    seed: int,
    extra: Callable[[str, Mapping[str, Any]], Any] | None = None,
) -> IterableDataset:
    """Tokenise and mix the parts; rows also have what `extra` makes of a format and a row of text."""
    parts = [_tokenize(part, tokenizer, data, extra) for part in stream.parts]
    if len(parts) == 1:
        return parts[0]
    return interleave_datasets(parts, probabilities=stream.chances, seed=seed, stopping_strategy="all_exhausted")


def _tokenize(
    part: IterableDataset,
    tokenizer: Any,
    data: Mapping[str, Any],
    extra: Callable[[str, Mapping[str, Any]], Any] | None,
) -> IterableDataset:
    columns, column = column_names(part), data["source_column"]
    chosen = detect_format(columns) if data["format"] == "auto" else data["format"]
    tokenize = tokenizer_of_format(chosen, tokenizer, data["max_length"])
    place = part.info.description or "The stream"

    def tokenize_row(row: Mapping[str, Any], number: int) -> dict[str, Any]:
        row = {**row, column: str(row[column])}
        try:
            tokens = {**tokenize(row), column: row[column]}
        except DataError as error:
            raise DataError(f"{place}, row {number} (the first is 0): {error}") from error
        return tokens if extra is None else {**tokens, EXTRA: extra(chosen, row)}

    # A column that comes only in later rows is in no list of those to remove.
    kept = [*TOKENS, column] if extra is None else [*TOKENS, column, EXTRA]
    tokens = part.map(tokenize_row, with_indices=True).select_columns(kept)
    return tokens.filter(_is_labelled)


def _is_labelled(row: Mapping[str, Any]) -> bool:
    return any(label != IGNORE for label in row["labels"][1:])
