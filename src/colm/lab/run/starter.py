"""A first configuration, from a look at data files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from colm.errors import DataError
from colm.lab.data.formats import text_of_row
from colm.lab.data.load import column_names, read_entry
from colm.lab.data.schemas import choose_format
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.lab.run.yaml12 import write_yaml
from colm.step.sources import count_sources

LABELS = ("source", "dataset", "data_source", "dataset_name", "task", "category", "domain", "subset", "origin")
"""Columns that usually name a row's source, the most usual first."""

MOST_SOURCES = 100
"""A column with more different values than this does not name sources, unless it is called ``source``."""

MEASURED = 1000
"""Rows of a file, evenly spread, whose length is measured."""

LETTERS = 3
"""Letters per token: fewer than in most English text, so that most rows fit."""

POOLS = ((8, 8), (4, 4), (2, 2))
"""Micro-batch and micro-batches of a pool; the first one that the rows fill twice is proposed."""


class FileFacts(NamedTuple):
    """What a data file contains."""

    path: str
    format: str  # a key of `schemas.COLUMNS`
    rows: int
    label: str | None  # the column with the source, if any
    sources: dict[str, int]  # source -> rows; without labels, the file is one source
    letters: int  # in a row longer than 95% of the others


def look_at(path: str) -> FileFacts:
    """Read a data file, a folder or a hub data set, and find out its format and its sources.

    Raises:
        DataError: it cannot be read, its columns match no format, or some of its rows have no source.
    """
    entry = MixtureEntry(path)
    rows = read_entry(entry, DataSettings(), label=False)
    format_name = choose_format("auto", column_names(rows))
    label = next((column for column in LABELS if _names_sources(rows, column)), None)
    sources = {entry.name: len(rows)} if label is None else count_sources(rows[label][:], label)
    lengths = sorted(len(text_of_row(format_name, rows[at])) for at in range(0, len(rows), -(-len(rows) // MEASURED)))
    return FileFacts(path, format_name, len(rows), label, sources, lengths[int(0.95 * (len(lengths) - 1))])


def _names_sources(rows: Any, column: str) -> bool:
    if column not in rows.column_names:
        return False
    if column == LABELS[0]:
        return True
    values = rows[column][:]
    return all(isinstance(value, str | int) for value in values) and 2 <= len(set(values)) <= MOST_SOURCES


def write_starter(files: Sequence[FileFacts], model: str, output_dir: str) -> str:
    """Return a commented configuration that trains on the files.

    Args:
        files: what `look_at` found; empty for the demo.
        model: the model's name.
        output_dir: the run's folder.

    Raises:
        DataError: two files would be sources of the same name.
    """
    sources: Counter[str] = Counter()
    for file in files:
        sources.update(file.sources)
    tiny, total = model == "tiny", sources.total() or DataSettings().demo_rows
    micro_batch, micro_batches = next((pool for pool in POOLS if 2 * pool[0] * pool[1] <= total), POOLS[-1])
    pool = micro_batch * micro_batches
    held = max(1, min(50, min(sources.values(), default=50) // 5))
    letters = max((file.letters for file in files), default=0)
    tokens = next((size for size in (128, 256, 512, 1024) if letters <= LETTERS * size), 2048)
    lines = [
        "# Written by colm init. colm schema describes every setting.",
        "" if not files else f"# {total:,} rows of {len(sources)} {'source' if len(sources) == 1 else 'sources'}.",
        _line("model", model),
        _line("lora", {"r": 16, "lora_alpha": 32}, "leave out to train all weights", hidden=tiny),
        "data:",
        *_train(files),
        _line("  validation_rows", held, "rows of each source to evaluate on; they are not trained on"),
        _line("  max_length", tokens, f"tokens of a row; 95% of the rows have at most {letters:,} letters"),
        *_mixture(files),
        *([] if len(sources) != 1 else _one_source()),
        "selection:",
        _line("  preset", "control", "small sources whole, large ones at random; or colm, matched"),
        _line("  keep", 0.5, "fraction of each pool that is trained on"),
        _line("  order", "balanced", "deals rows evenly into the steps; free, but only with preset: control"),
        "training:  # any field of transformers.TrainingArguments",
        _line("  per_device_train_batch_size", micro_batch),
        _line("  gradient_accumulation_steps", micro_batches, f"a pool of {micro_batch} x {micro_batches} rows"),
        _line("  max_steps", max(10, min(1000, 3 * total // pool)), f"pools of {pool} of the {total:,} rows"),
        _line("  learning_rate", 3e-3 if tiny else 2e-4, "lower, such as 2.0e-5, to train all weights"),
        _line("  logging_steps", 10),
        "  # bf16: true  # on a GPU",
        _line("output_dir", output_dir),
    ]
    return "".join(f"{line}\n" for line in lines if line)


def _train(files: Sequence[FileFacts]) -> list[str]:
    if not files:
        return [_line("  train", "demo", "nine generated tasks; name your own file instead")]
    if len(files) > 1 or files[0].label is None:
        return []
    (file,) = files
    found = f"{file.rows:,} rows, format {file.format}"
    return [_line("  train", file.path, found), _line("  source_column", file.label, _describe(file.sources))]


def _mixture(files: Sequence[FileFacts]) -> list[str]:
    if len(files) < 2 and (not files or files[0].label is not None):
        return []
    names = Counter(MixtureEntry(file.path).name for file in files)
    lines = ["mixture:"]
    for file in files:
        name = MixtureEntry(file.path).name
        if names[name] > 1 and file.label is not None:
            raise DataError(
                f"{names[name]} files are named {name!r}, and {file.path!r} has sources of its own. Rename the files, "
                "so that their names differ."
            )
        lines.append(_line("  - path", file.path, f"{file.rows:,} rows, format {file.format}"))
        if file.label is None:
            lines.append(_line("    source", file.path if names[name] > 1 else name))
        elif file.label != LABELS[0]:
            lines.append(_line("    columns", {LABELS[0]: file.label}, _describe(file.sources)))
        else:
            lines.append(f"    # its own column, source: {_describe(file.sources)}")
    return lines


def _one_source() -> list[str]:
    return ["# One source: nothing is small. To find sources in the rows:", "# sources: {cluster: {clusters: auto}}"]


def _describe(sources: dict[str, int], most: int = 5) -> str:
    ranked = sorted(sources.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{name if name.isprintable() else ascii(name)} {rows:,}" for name, rows in ranked[:most]]
    return ", ".join(named) + (f", and {len(ranked) - most} more" if len(ranked) > most else "")


def _line(key: str, value: Any, comment: str = "", *, hidden: bool = False) -> str:
    """Return a line of YAML with a comment."""
    text = write_yaml(value, flow=True).strip() if isinstance(value, dict) else _scalar(value)
    return f"{'# ' if hidden else ''}{key}: {text}{f'  # {comment}' if comment else ''}"


def _scalar(value: Any) -> str:
    """Return a scalar as YAML in one line."""
    return write_yaml({"key": value}, flow=True).strip()[1:-1].partition(": ")[2]
