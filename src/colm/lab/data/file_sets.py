"""Files as data sets: rows in the cache of `datasets`, or streams read on demand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import IO, Any

import fsspec
import pandas as pd
from datasets import Dataset, Features, IterableDataset
from pyarrow.parquet import ParquetFile

from colm.errors import DataError
from colm.lab.data.cells import ColumnTypes, encode_row, features_of_arrow, rows_of_arrow
from colm.lab.data.files import COMPRESSIONS, CSV_ENDINGS, JSON_ENDINGS, read_file_rows, split_ending
from colm.lab.data.text_lines import Row

PARQUET_ROWS = 1000
"""Rows of a Parquet file read at a time."""

FIRST_ROWS = 1000
"""Leading rows of a stream that determine the columns of all rows."""


def files_as_rows(
    names: Sequence[str], ending: str, *, streaming: bool = False, copies: Sequence[str] = (), **reading: Any
) -> Any:
    """Read JSON or CSV files; `copies` are the local downloads of remote files, `reading` as for `_generate`."""
    places = list(copies or names)
    options: dict[str, Any] = {"names": list(names), "places": places, "ending": ending, **reading}
    if streaming:
        first = islice(_generate(**options), FIRST_ROWS)
        columns = tuple(dict.fromkeys(column for row in first for column in row))  # lists would be shards
        _require_rows(names[0], columns)
        return IterableDataset.from_generator(_generate, gen_kwargs={**options, "columns": columns})
    types = ColumnTypes()
    for row in _generate(**options):
        types.add(row)
    features = types.features()
    _require_rows(names[0], features)
    options |= {"features": features, "stamps": [_stamp(place) for place in places]}
    return Dataset.from_generator(_generate, features=features, gen_kwargs=options)


def _require_rows(name: str, found: object) -> None:
    """Raise DataError if nothing was found: no row, or no cell in any row."""
    if not found:
        raise DataError(f"{name!r} has no rows; it needs at least one.")


def _generate(
    names: list[str],
    places: list[str],
    ending: str,
    separator: str = "",
    pandas: Mapping[str, Any] | None = None,
    columns: Sequence[str] = (),
    features: Features | None = None,
    stamps: Sequence[Any] = (),
) -> Iterator[Row]:
    """Yield the rows of files, each with all `columns`; `pandas` holds settings for pandas' CSV reader only."""
    for name, place in zip(names, places, strict=True):
        own = split_ending(name)[1]
        kind = own if own in (*JSON_ENDINGS, *CSV_ENDINGS) else ending
        if pandas is not None:
            rows = _rows_of_pandas(name, place, pandas)
        else:
            held = read_file_rows(name, ending=kind, separator=separator, open_file=partial(_open, place))
            rows = (row for _, row in held)
        for row in rows:
            yield {**dict.fromkeys(columns), **row} if features is None else encode_row(row, features)


def _rows_of_pandas(name: str, place: str, settings: Mapping[str, Any]) -> Iterator[Row]:
    packed = split_ending(name)[2]
    with _open(place, name) as raw:
        file = COMPRESSIONS[packed](raw) if packed else raw
        for chunk in pd.read_csv(file, iterator=True, **settings):
            yield from chunk.to_dict("records")


def _open(place: str, name: str) -> IO[bytes]:
    if os.path.exists(place):
        return open(place, "rb")
    file: IO[bytes] = fsspec.open(place, "rb").open()
    return file


def parquet_as_rows(name: str, streaming: bool) -> Any:
    """Read a Parquet file."""
    # The builder of `datasets` would take names for patterns.
    with open(name, "rb") as file:
        held = ParquetFile(file)
        rows, schema = held.metadata.num_rows, held.schema_arrow
    _require_rows(name, rows)
    doubled = [column for column in schema.names if schema.names.count(column) > 1]
    if doubled:
        raise DataError(f"{name!r} has the column {doubled[0]!r} twice; rename one of them.")
    if streaming:
        return IterableDataset.from_generator(_generate_parquet, gen_kwargs={"name": name})
    features = features_of_arrow(schema)
    options = {"name": name, "features": features, "stamp": _stamp(name)}
    return Dataset.from_generator(_generate_parquet, features=features, gen_kwargs=options)


def _generate_parquet(name: str, features: Features | None = None, stamp: Any = None) -> Iterator[Row]:
    with open(name, "rb") as file:
        for batch in ParquetFile(file).iter_batches(PARQUET_ROWS):
            for row in rows_of_arrow(batch):
                yield row if features is None else encode_row(row, features)


def _stamp(path: str) -> tuple[str | int, ...]:
    """Return the identity of a file in the cache of `datasets`: a changed file is read again."""
    stat = os.stat(path)
    # A file copied with its mtime still has a new inode or a new ctime.
    return os.path.abspath(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
