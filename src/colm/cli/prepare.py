"""What `train` and `sources` both need: the tokenizer and the tokenised mixture."""

from __future__ import annotations

from typing import Any, NamedTuple

from datasets import Dataset

from colm.answers.gym import COLUMN
from colm.cli.settings import RunSettings
from colm.data.load import read_mixture, read_validation, tokenize_rows
from colm.data.stream import prepare_stream, read_stream
from colm.models import load_tokenizer, train_tiny_tokenizer


class PreparedData(NamedTuple):
    """Tokenised rows, each with its source."""

    tokenizer: Any
    train: Any  # a Dataset, or an IterableDataset where data.streaming is set
    validation: dict[str, Dataset]  # by source; empty where there is no validation data
    window: Dataset | None = None  # first rows of a stream


def prepare_data(settings: RunSettings) -> PreparedData:
    """Read the mixture and tokenise it. Raises DataError or ConfigError."""
    data = settings.data
    if data["streaming"]:
        return _prepare_stream(settings)
    mixture = read_mixture(data, settings.mixture, settings.seed if data["seed"] is None else data["seed"])
    if settings.model == "tiny":
        other = (data["source_column"], COLUMN)  # what only scorers read
        columns = [name for part in mixture.train for name in part.column_names if name not in other]
        texts = (str(row[name]) for part in mixture.train for row in part for name in columns if name in row)
        tokenizer = train_tiny_tokenizer(texts)
    else:
        tokenizer = load_tokenizer(settings.model)

    def tokenize(parts: list[Dataset]) -> Dataset:
        return tokenize_rows(
            parts,
            tokenizer,
            format_name=data["format"],
            max_length=data["max_length"],
            source_column=data["source_column"],
        )

    train = tokenize(mixture.train)
    validation = tokenize(mixture.validation) if mixture.validation else None
    return PreparedData(tokenizer, train, _by_source(validation, data["source_column"]))


def _prepare_stream(settings: RunSettings) -> PreparedData:
    data, column = settings.data, settings.data["source_column"]
    stream = read_stream(data, settings.mixture)
    if settings.model == "tiny":
        rows = [row for part in stream.parts for row in part.take(data["window"])]
        tokenizer = train_tiny_tokenizer(str(text) for row in rows for name, text in row.items() if name != column)
    else:
        tokenizer = load_tokenizer(settings.model)
    mixture = prepare_stream(stream, tokenizer, data, settings.seed if data["seed"] is None else data["seed"])
    validation = mixture.validation
    if data["validation"]:
        options = {"format_name": data["format"], "max_length": data["max_length"], "source_column": column}
        validation = tokenize_rows(read_validation(data), tokenizer, **options)
    return PreparedData(tokenizer, mixture.train, _by_source(validation, column), mixture.window)


def _by_source(rows: Dataset | None, column: str) -> dict[str, Dataset]:
    if rows is None:
        return {}
    positions: dict[str, list[int]] = {}
    for row, name in enumerate(rows[column]):
        positions.setdefault(str(name), []).append(row)
    return {name: rows.select(held) for name, held in sorted(positions.items())}
