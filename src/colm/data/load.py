"""Read a mixture from files and hubs, and turn it into tokens with a source for each row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Value, concatenate_datasets, load_dataset

from colm.batch import IGNORE
from colm.data.demo import demo_rows
from colm.data.formats import choose_format, tokenizer_of_batch
from colm.data.mix import cap_rows, check_names, weigh_rows
from colm.data.template import fill_template
from colm.errors import DataError, suggest
from colm.sources import count_sources

logger = logging.getLogger(__name__)

SHARD = 100_000
"""Rows that are tokenised at a time."""

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""File endings and the `datasets` builder that reads them."""


class Mixture(NamedTuple):
    """Rows of text, each with its source, before tokenisation: parts that may differ in format."""

    train: list[Dataset]
    validation: list[Dataset]  # empty where there is none


def read_rows(
    name: str, *, split: str = "train", config: str | None = None, revision: str | None = None, streaming: bool = False
) -> Any:
    """Read one file, or a data set of the hub.

    Args:
        name: a path ending in .jsonl, .json, .csv or .parquet, a folder that `datasets` wrote, or a hub name.
        split: of a hub data set.
        config: of a hub data set.
        revision: of a hub data set: a branch, a tag or a commit.
        streaming: return an `IterableDataset`, whose rows are read when they are needed.

    Raises:
        DataError: the file is missing, empty or not readable, or the hub has no such data set.
    """
    path = Path(name)
    builder = BUILDERS.get(path.suffix.lower())
    if builder is not None and not path.is_file():
        siblings = [str(sibling) for sibling in path.parent.glob("*")] if path.parent.is_dir() else []
        raise DataError(f"There is no file {name!r}.{suggest(name, siblings)}")
    if builder is not None and path.stat().st_size == 0:
        raise DataError(f"The file {name!r} is empty; it needs at least one row.")
    try:
        if builder is not None:
            rows = load_dataset(builder, data_files=str(path), split="train", streaming=streaming)
        elif path.is_dir() and (path / "dataset_info.json").exists():
            rows = Dataset.load_from_disk(str(path))
            rows = rows.to_iterable_dataset() if streaming else rows
        else:
            rows = load_dataset(name, config, split=split, revision=revision, streaming=streaming)
    except Exception as error:  # every builder and the hub client raise their own
        what = "file could not be read" if builder is not None else "data set could not be loaded"
        raise DataError(
            f"The {what}: {name!r} ({type(error).__name__}: {error}). Give a {', '.join(BUILDERS)} file or a hub name."
        ) from error
    if not streaming and len(rows) == 0:
        raise DataError(f"{name!r} has no row; it needs at least one.")
    return rows


Relabel = Callable[[list[Dataset], list[Dataset]], tuple[list[Dataset], list[Dataset]]]
"""Gives training and validation parts other sources."""


def read_mixture(
    data: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], seed: int, relabel: Relabel | None = None
) -> Mixture:
    """Read training and validation rows, each with its ``source``.

    Args:
        data: the ``data`` section of a run's configuration.
        entries: the ``mixture`` list; each entry's rows are one source.
        seed: of the held-out split and of the demo's generators.
        relabel: gives rows their sources before any are held out, capped or weighted; None where they have theirs.

    Raises:
        DataError: nothing to read, a missing column, a row without a source.
    """
    column = data["source_column"]
    validation: list[Dataset] = []
    if entries:
        _require_distinct(entries)
        train = [read_entry(entry, data) for entry in entries]
    elif data["train"] == "demo":
        if isinstance(data["validation_rows"], Mapping):
            raise DataError("The demo holds out as many rows of each source; make data.validation_rows a number.")
        train = [demo_rows(data["demo_rows"], seed)]
        validation = [demo_rows(data["demo_rows"], seed, held_out=data["validation_rows"] or 1)]
    elif data["train"]:
        train = [
            read_entry({"path": data["train"], "split": data["split"], "config": data["config"]}, data, label=False)
        ]
    else:
        raise DataError("There is nothing to train on: set data.train, or list sources under mixture.")
    if data["validation"]:
        validation = read_validation(data, labelled=relabel is None)
    if relabel is not None:
        train, validation = relabel(train, validation)
    for part in train:
        _require_sources(part, column, "training")
    if not validation and data["validation_rows"]:
        train, validation = hold_out(train, column, data["validation_rows"], seed)
    if data["cap"] is not None:
        train = cap_rows(train, column, data["cap"], seed)
    if data["weights"]:
        train = weigh_rows(train, column, data["weights"], seed)
    return Mixture(train, validation)


def read_validation(data: Mapping[str, Any], *, labelled: bool = True) -> list[Dataset]:
    """Read what ``data.validation`` names, if anything; `labelled` says that rows must have a source.

    Raises as `read_mixture`.
    """
    if not data["validation"]:
        return []
    entry = {"path": data["validation"], "split": data["validation_split"], "config": data["config"]}
    rows = read_entry(entry, data, label=False)
    if labelled:
        _require_sources(rows, data["source_column"], "validation")
    return [rows]


def hold_out(
    parts: Sequence[Dataset], column: str, per_source: int | Mapping[str, int], seed: int
) -> tuple[list[Dataset], list[Dataset]]:
    """Split off `per_source` rows of every source, at most half of it, at random.

    A source may have rows in several parts; they count as one. Of sources that a mapping does not name none are held
    out.

    Returns:
        The rest and the held-out rows, each in its old order, without parts that are empty.

    Raises:
        DataError: a mapping names a source that does not exist, or a row has none.
    """
    labels = [label for part in parts for label in part[column][:]]
    sizes = count_sources(labels, column)
    if isinstance(per_source, Mapping):
        check_names("data.validation_rows", per_source, list(sizes))
    wanted = per_source if isinstance(per_source, Mapping) else dict.fromkeys(sizes, per_source)
    left = {name: min(wanted.get(name, 0), size // 2) for name, size in sizes.items()}
    held = np.zeros(len(labels), dtype=bool)
    for row in np.random.default_rng(seed).permutation(len(labels)).tolist():
        name = str(labels[row])
        if left[name] > 0:
            left[name] -= 1
            held[row] = True
    masks = np.split(held, np.cumsum([len(part) for part in parts])[:-1])
    rest, out = (
        [part.select(np.flatnonzero(mask == side)) for part, mask in zip(parts, masks, strict=True)]
        for side in (False, True)
    )
    return [part for part in rest if len(part)], [part for part in out if len(part)]


def tokenize_rows(
    parts: Sequence[Dataset], tokenizer: Any, *, format_name: str, max_length: int, source_column: str
) -> Dataset:
    """Return ``input_ids``, ``attention_mask``, ``labels`` and the source of every row that has a label.

    Args:
        parts: rows of text; each part's format is found by its own columns where `format_name` is ``auto``.
        tokenizer: a fast Hugging Face tokenizer.
        format_name: a key of `formats.COLUMNS`, or ``auto``.
        max_length: tokens.
        source_column: kept beside the tokens.

    Raises:
        DataError: no format fits a part, or none of its rows has a labelled token.
    """
    return concatenate_datasets([_tokenize(part, tokenizer, format_name, max_length, source_column) for part in parts])


def _tokenize(rows: Dataset, tokenizer: Any, format_name: str, max_length: int, source_column: str) -> Dataset:
    chosen = choose_format(format_name, rows.column_names)
    tokenize = tokenizer_of_batch(chosen, tokenizer, max_length)

    def tokenize_labelled(columns: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        tokens: dict[str, Sequence[Any]] = {**tokenize(columns), source_column: columns[source_column]}
        kept = [row for row, labels in enumerate(tokens["labels"]) if any(label != IGNORE for label in labels[1:])]
        return {name: [values[row] for row in kept] for name, values in tokens.items()}

    shards = [
        # One at a time, so that an interrupted tokenising of files goes on from what `datasets` has kept of it.
        rows.select(range(start, min(start + SHARD, len(rows)))).map(
            tokenize_labelled,
            batched=True,
            remove_columns=rows.column_names,
            desc=f"Tokenising from row {start:,}" if start else "Tokenising",
        )
        for start in range(0, len(rows), SHARD)
    ]
    held = [shard for shard in shards if len(shard)]
    kept = sum(map(len, held))
    dropped = len(rows) - kept
    if not kept:
        raise DataError(
            f"None of the {len(rows)} rows has a labelled token within max_length={max_length} (format {chosen}): "
            "completions are empty or cut off. Raise data.max_length, or check the columns."
        )
    if dropped:
        logger.warning(
            "%d of %d rows have no labelled token within max_length=%d and are dropped.",
            dropped,
            len(rows),
            max_length,
        )
    tokens = concatenate_datasets(held)
    if tokens.features[source_column] != Value("string"):
        tokens = tokens.cast_column(source_column, Value("string"))
    return tokens


def _require_distinct(entries: Sequence[Mapping[str, Any]]) -> None:
    """Refuse two entries whose sources would be one only because their files have the same name."""
    stems: dict[str, str] = {}
    for entry in entries:
        if entry.get("path") and not entry.get("source"):
            stem = Path(entry["path"]).stem
            if stem in stems:
                raise DataError(
                    f"The mixture entries {stems[stem]!r} and {entry['path']!r} would both be the source {stem!r}; "
                    "give each a source of its own (or the same one, to merge them)."
                )
            stems[stem] = entry["path"]


def read_entry(
    entry: Mapping[str, Any], data: Mapping[str, Any], *, label: bool = True, streaming: bool = False
) -> Any:
    """Read one entry of a mixture: rows with colm's column names and their source.

    Args:
        entry: what to read; what it does not say is said by `data`.
        data: the ``data`` section of a run's configuration.
        label: name the source after the entry, where its rows have no label of their own.
        streaming: return a stream.

    Raises:
        DataError: an unknown key, no path, or a column that is missing.
    """
    known = ("path", "source", "split", "config", "revision", "columns", "template", "labels")
    for key in entry:
        if key not in known:
            raise DataError(
                f"Unknown key {key!r} in a mixture entry.{suggest(key, known)} An entry has {', '.join(known)}."
            )
    if not entry.get("path"):
        raise DataError(f"The mixture entry {dict(entry)} has no path; give a file or a hub name.")
    options = {key: entry.get(key) or data.get(key) for key in ("revision", "columns", "template", "labels")}
    rows = read_rows(
        entry["path"],
        split=entry.get("split") or "train",
        config=entry.get("config"),
        revision=options["revision"],
        streaming=streaming,
    )
    column = data["source_column"]
    rows = _rename(rows, options["columns"] or {})
    if options["template"]:
        rows = fill_template(rows, column_names(rows), options["template"], options["labels"] or {}, keep=column)
    present = column_names(rows)
    if not label or (column in present and not entry.get("source")):
        return rows  # its own labels
    source = str(entry.get("source") or Path(entry["path"]).stem)
    if streaming:
        return rows.map(lambda row: {column: source})
    if column in present:
        rows = rows.remove_columns(column)
    return rows.add_column(column, [source] * len(rows))


def column_names(rows: Any) -> list[str]:
    """Return the columns of a data set, or of a stream's first row."""
    if rows.column_names is None:
        return list(next(iter(rows), {}))
    return list(rows.column_names)


def _rename(rows: Any, columns: Mapping[str, str]) -> Any:
    """Apply data.columns, which maps colm's names to those in the data."""
    for wanted, present in columns.items():
        names = column_names(rows)
        if present not in names:
            raise DataError(
                f"data.columns maps {wanted!r} to {present!r}, which the data does not have."
                f"{suggest(present, names)} It has: {', '.join(names)}."
            )
        if wanted != present and wanted in names:
            raise DataError(
                f"data.columns maps {wanted!r} to {present!r}, but the data has a column {wanted!r} already; rename "
                "one of them in the data."
            )
        if wanted != present:
            rows = rows.rename_column(present, wanted)
    return rows


def _require_sources(rows: Dataset, column: str, what: str) -> None:
    if column not in rows.column_names:
        raise DataError(
            f"The {what} data has no column {column!r} for the source.{suggest(column, rows.column_names)} "
            f"It has: {', '.join(rows.column_names)}. Name the right one with data.source_column, or list each "
            "file under mixture."
        )
    count_sources(rows[column][:], column)  # all at once: a column gives single rows slowly
