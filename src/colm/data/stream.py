"""A mixture that is read as it is needed: streams of files and hub data sets, tokenised on the way."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from datasets import Dataset, IterableDataset, interleave_datasets

from colm.batch import IGNORE
from colm.data.formats import detect_format, tokenizer_of_format
from colm.data.load import column_names, hold_out, read_entry, source_of_entry
from colm.data.mix import check_names, share_of_weights
from colm.errors import DataError, suggest
from colm.sources import RowsLeft, name_of_row

logger = logging.getLogger(__name__)

BUFFER = 1000
"""Rows that a stream is shuffled among."""


class StreamParts(NamedTuple):
    """Streams of text with their source, before tokenisation."""

    parts: list[IterableDataset]
    files: list[str]  # of each part
    chances: list[float] | None  # of each part; None: all the same


class StreamedMixture(NamedTuple):
    """A tokenised stream, and its first rows."""

    train: IterableDataset
    window: Dataset
    validation: Dataset | None
    counts: RowsLeft  # of what was read until the window was full; rows that are read again count again


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
        names = [source_of_entry(entry) for entry in entries]
    elif data["train"]:
        entry = {"path": data["train"], "split": data["split"], "config": data["config"]}
        parts, names = [read_entry(entry, data, label=False, streaming=True)], []
    else:
        raise DataError("There is nothing to train on: set data.train, or list sources under mixture.")
    files = [entry["path"] for entry in entries] or [data["train"]]
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
        return StreamParts(parts, files, None)
    if not data["weights"] and len(weights) < len(names):
        return StreamParts(parts, files, None)
    shares = share_of_weights(weights, sorted(set(names)))
    chances = [shares[name] / names.count(name) for name in names]
    held = [place for place, chance in enumerate(chances) if chance > 0]
    return StreamParts([parts[i] for i in held], [files[i] for i in held], [chances[i] for i in held])


def prepare_stream(stream: StreamParts, tokenizer: Any, data: Mapping[str, Any], seed: int) -> StreamedMixture:
    """Tokenise, mix and shuffle the parts, and read the first rows.

    Rows without a labelled token are passed over; the log says of which sources they are. Held-out rows come from the
    first window; rows with the same tokens are not trained on.

    Args:
        stream: the parts.
        tokenizer: a fast Hugging Face tokenizer.
        data: the ``data`` section of a run's configuration.
        seed: of the mixing, and of the held-out rows.

    Raises:
        DataError: no row of the first window has a label, or held-out rows are asked of a source that is not there.
    """
    column = data["source_column"]
    counts = [_LabelledRows(column) for _ in stream.parts]
    parts = [
        _tokenize(part, file, tokenizer, data, counter)
        for part, file, counter in zip(stream.parts, stream.files, counts, strict=True)
    ]
    mixed = _mix(parts, counts, stream.chances, seed)
    rows = [] if mixed is None else list(islice(iter(mixed), data["window"]))
    if mixed is None or not rows:
        raise DataError(
            f"No row of the stream has a labelled token within max_length={data['max_length']}: completions are empty "
            "or cut off. Raise data.max_length, or check the columns."
        )
    found = _add_up(counts, f"a labelled token within max_length={data['max_length']}")
    found.warn()
    for name in data["source_sizes"]:
        if name not in found.before:
            logger.warning(
                "data.source_sizes names %r, but none of the first %d rows of the stream is of it.%s",
                name,
                sum(found.before.values()),
                suggest(name, found.before),
            )
    window = Dataset.from_list(rows)
    wanted = data["validation_rows"]
    if data["validation"] or not wanted:
        return StreamedMixture(mixed.shuffle(seed=seed, buffer_size=BUFFER), window, None, found)
    if isinstance(wanted, Mapping):
        check_names("data.validation_rows", wanted, sorted(set(window[column])), found.gone)
    _, out = hold_out([window], column, wanted, seed)
    held = out[0] if out else None
    # By their tokens: an entry that is read again, or in another order, brings its first rows back.
    tokens = {tuple(ids) for ids in held["input_ids"]} if held else set()
    rest = mixed.filter(lambda row: tuple(row["input_ids"]) not in tokens)
    return StreamedMixture(rest.shuffle(seed=seed, buffer_size=BUFFER), window, held, found)


class _LabelledRows:
    """Says whether a tokenised row has a label to learn, and counts the rows of each source that it was asked of.

    A copy in a data loader's worker counts for itself.
    """

    def __init__(self, column: str) -> None:
        self._column = column
        self.asked: Counter[str] = Counter()
        self.labelled: Counter[str] = Counter()

    def __call__(self, row: Mapping[str, Any]) -> bool:
        labelled = any(label != IGNORE for label in row["labels"][1:])
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


def _mix(
    parts: Sequence[IterableDataset], counts: Sequence[_LabelledRows], chances: Sequence[float] | None, seed: int
) -> IterableDataset | None:
    """Interleave the parts that have a row with a label, whose counts then begin; None where none has.

    One without such a row, with which `datasets` can not interleave, is read to its end to find that out.
    """
    if len(parts) == 1:
        return parts[0]
    held = [place for place, part in enumerate(parts) if next(iter(part), None) is not None]
    if not held:
        return None
    mixed = parts[held[0]]
    if len(held) > 1:
        total = sum(chances[place] for place in held) if chances else 1
        mixed = interleave_datasets(
            [parts[place] for place in held],
            probabilities=[chances[place] / total for place in held] if chances and len(held) < len(parts) else chances,
            seed=seed,
            stopping_strategy="all_exhausted",
        )
    for place in held:
        counts[place].begin()  # a few rows were read only to see what there is
    return mixed


def _tokenize(
    part: IterableDataset, file: str, tokenizer: Any, data: Mapping[str, Any], is_labelled: _LabelledRows
) -> IterableDataset:
    columns, column = column_names(part), data["source_column"]
    chosen = detect_format(columns) if data["format"] == "auto" else data["format"]
    tokenize = tokenizer_of_format(chosen, tokenizer, data["max_length"])
    tokens = part.map(
        lambda row, number: {**tokenize(row), column: name_of_row(row[column], column, number, file=file)},
        with_indices=True,
        remove_columns=[name for name in columns if name != column],
    )
    return tokens.filter(lambda row: is_labelled(row))  # interleaving copies what is no function, with its counts
