"""Features by which rows are ordered: their sources, their tokens, or vectors from a file or an array."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from colm.config_checks import OrderBy
from colm.errors import ConfigError, DataError, one_line, suggest
from colm.token_features import is_list, token_features
from colm.typed import read_value

COLUMN = "features"
"""The column of a Parquet file."""


class RowFeatures(NamedTuple):
    """Features of all rows of a data set."""

    by: str  # what they are, in a word, or the path of their file
    values: np.ndarray  # (rows, d) float32
    seconds: float = 0.0  # that making them took


def make_features(by: Any, codes: np.ndarray, count: int, dataset: Any = None) -> RowFeatures:
    """Return the features of the rows of a data set.

    Args:
        by: None or ``"sources"``; ``"tokens"``; the path of a file, see `read_features`; an array (rows, d); or
            features that are made already.
        codes: (rows,) int, the source of each row, from 0 to count - 1.
        count: number of sources.
        dataset: for ``"tokens"``, see `token_features`.

    Raises:
        ConfigError: `by` is none of these, or ``"tokens"`` without a data set.
        DataError: see `read_features` and `token_features`.
    """
    if isinstance(by, RowFeatures):
        return by
    start = time.perf_counter()
    by = "sources" if by is None else by
    if isinstance(by, str):
        by = read_value("features", OrderBy, by)
    named = isinstance(by, str | Path)
    if named and by == "sources":
        values = source_features(codes, count)
    elif named and by == "tokens":
        if dataset is None:
            raise ConfigError(
                "features='tokens' needs the rows of the data: use MixtureBatchSampler.from_dataset, or pass "
                "colm.token_features.token_features(dataset)."
            )
        values = token_features(dataset)
    elif named:
        by, values = str(by), read_features(Path(by), len(codes))
    else:
        by, values = "features", check_features(by, len(codes), "The array")
    return RowFeatures(by, values, time.perf_counter() - start)


def make_token_features(settings: Mapping[str, Any], dataset: Any) -> dict[str, Any]:
    """Return a sampler's settings in which features by name that need the data are made from it."""
    by_tokens = isinstance(settings.get("features"), str) and settings["features"] == "tokens"
    return {**settings, "features": make_features("tokens", np.empty(0), 0, dataset)} if by_tokens else dict(settings)


def source_features(codes: np.ndarray, count: int) -> np.ndarray:
    """Return each row's source as a unit vector, (n, count) float32; all sources are at the same distance.

    Args:
        codes: (n,) int, the source of each row, from 0 to count - 1.
        count: number of sources.
    """
    found = np.zeros((len(codes), count), dtype=np.float32)
    found[np.arange(len(codes)), codes] = 1
    return found


def read_features(path: Path, rows: int) -> np.ndarray:
    """Return the vectors of a file, one for each row of the data, (rows, d) float32.

    Args:
        path: a ``.npy`` file with an array (rows, d), or a ``.parquet`` file whose column ``features`` has lists of d
            numbers.
        rows: the rows of the data.

    Raises:
        DataError: the file cannot be read, has another number of rows, no such column, or a value that is not finite.
    """
    try:
        values = _read_parquet(path) if path.suffix == ".parquet" else np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"The features in {path} cannot be read ({one_line(error)}); give an existing file.") from error
    return check_features(values, rows, f"The file {path}")


def check_features(values: Any, rows: int, place: str) -> np.ndarray:
    """Return features as an array (rows, d) float32.

    Args:
        values: an array of numbers, or what becomes one.
        rows: the rows of the data.
        place: what has these features, the first words of a message.

    Raises:
        DataError: another shape or type, or a value that is not finite.
    """
    found = np.asarray(values)
    if found.ndim != 2 or not found.shape[1] or found.dtype.kind not in "fiub":
        raise DataError(
            f"{place} has features of shape {found.shape} and type {found.dtype}; they must be an array (rows, d) of "
            "numbers, d at least 1."
        )
    if len(found) != rows:
        raise DataError(
            f"{place} has features of {len(found)} rows, but the training data has {rows}; give one vector for each "
            "row, in the order of the data."
        )
    with np.errstate(over="ignore"):  # reported below
        found = found.astype(np.float32)
    broken = np.flatnonzero(~np.isfinite(found).all(1))
    if len(broken):
        raise DataError(f"{place} has features that are not finite numbers in row {broken[0]}; give finite ones.")
    return found


def _read_parquet(path: Path) -> np.ndarray:
    names = pq.read_schema(path).names
    if COLUMN not in names:
        raise DataError(
            f"The file {path} has no column {COLUMN!r}.{suggest(COLUMN, names)} Columns: {', '.join(names)}. Store "
            f"lists of numbers in {COLUMN!r}."
        )
    lists = pq.read_table(path, columns=[COLUMN])[COLUMN].combine_chunks()
    if not is_list(lists.type):
        raise DataError(f"The column {COLUMN!r} of {path} has the type {lists.type}; it must have lists of numbers.")
    lengths = set(pc.list_value_length(lists).to_pylist())
    if len(lengths) > 1 or None in lengths:
        raise DataError(
            f"The lists in the column {COLUMN!r} of {path} differ in length; give each row as many numbers."
        )
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False)).reshape(len(lists), -1)
