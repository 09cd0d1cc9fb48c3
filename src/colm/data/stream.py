"""A mixture that is read as it is needed: streams of files and hub data sets, tokenised on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset, interleave_datasets

from colm.batch import IGNORE
from colm.data.formats import choose_format, tokenizer_of_format
from colm.data.load import column_names, hold_out, read_entry
from colm.data.mix import share_of_weights
from colm.errors import DataError, suggest

BUFFER = 1000
"""Rows that a stream is shuffled among."""


class StreamParts(NamedTuple):
    """Streams of text with their source, before tokenisation."""

    parts: list[IterableDataset]
    chances: list[float] | None  # of each part; None: all the same


class StreamedMixture(NamedTuple):
    """A tokenised stream, and its first rows."""

    train: IterableDataset
    window: Dataset
    validation: Dataset | None


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
        names = [str(entry.get("source") or Path(str(entry["path"])).stem) for entry in entries]
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


def prepare_stream(stream: StreamParts, tokenizer: Any, data: Mapping[str, Any], seed: int) -> StreamedMixture:
    """Tokenise, mix and shuffle the parts, and read the first rows.

    Rows without a labelled token are passed over. Held-out rows come from the first window; rows with the same tokens
    are not trained on.

    Args:
        stream: the parts.
        tokenizer: a fast Hugging Face tokenizer.
        data: the ``data`` section of a run's configuration.
        seed: of the mixing, and of the held-out rows.

    Raises:
        DataError: no row of the first window has a label, or held-out rows are asked of a source that is not there.
    """
    column = data["source_column"]
    parts = [_tokenize(part, tokenizer, data) for part in stream.parts]
    mixed = parts[0]
    if len(parts) > 1:
        mixed = interleave_datasets(parts, probabilities=stream.chances, seed=seed, stopping_strategy="all_exhausted")
    rows = list(islice(iter(mixed), data["window"]))
    if not rows:
        raise DataError(
            f"No row of the stream has a labelled token within max_length={data['max_length']}: completions are empty "
            "or cut off. Raise data.max_length, or check the columns."
        )
    window = Dataset.from_list(rows)
    wanted = data["validation_rows"]
    if data["validation"] or not wanted:
        return StreamedMixture(mixed.shuffle(seed=seed, buffer_size=BUFFER), window, None)
    _, out = hold_out([window], column, wanted, seed)
    held = out[0] if out else None
    # By their tokens: an entry that is read again, or in another order, brings its first rows back.
    tokens = {tuple(ids) for ids in held["input_ids"]} if held else set()
    rest = mixed.filter(lambda row: tuple(row["input_ids"]) not in tokens)
    return StreamedMixture(rest.shuffle(seed=seed, buffer_size=BUFFER), window, held)


def _tokenize(part: IterableDataset, tokenizer: Any, data: Mapping[str, Any]) -> IterableDataset:
    columns, column = column_names(part), data["source_column"]
    chosen = choose_format(data["format"], columns)
    tokenize = tokenizer_of_format(chosen, tokenizer, data["max_length"])
    tokens = part.map(
        lambda row: {**tokenize(row), column: str(row[column])},
        remove_columns=[name for name in columns if name != column],
    )
    return tokens.filter(lambda row: any(label != IGNORE for label in row["labels"][1:]))
