"""Files with one vector per training row: write them, join their parts, and check which rows they are of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colm import __version__
from colm.errors import ConfigError, DataError
from colm.lab.sources.wanted import WHOLE, Part
from colm.step.files import replacing

COLUMN = "features"

GROUP_BYTES = 2**25
"""Vectors written at a time."""

FIRST = 4
"""Rows of the whole data whose vectors every part contains, at the first `FIRST_NUMBERS` places."""
FIRST_NUMBERS = 64

APART = 0.02
"""Difference between two vectors of one row, relative to their largest number, from which two parts do not fit.

Machines round differently. With another projection or other random weights, whole vectors differ."""

_META = b"colm_features"


class Header(NamedTuple):
    """What a file of vectors says about itself."""

    settings: dict[str, Any]  # what the vectors were made by
    fingerprint: dict[str, Any]  # ``rows`` and ``digest`` of all training rows, see `fingerprint_data`
    dimensions: int  # of a vector
    first: list[list[float]]  # vectors of the first rows, cut; to see that two parts have the same kind of vectors
    part: Part = WHOLE
    version: str = __version__


def write_vectors(path: Path, vectors: Iterable[np.ndarray], header: Header) -> None:
    """Write a file whole or not at all, in row groups of `GROUP_BYTES`.

    Args:
        path: the Parquet file; its column ``features`` is a fixed-size list of float32.
        vectors: (n, dimensions) float32 each, in the order of the rows.
        header: stored in the file's metadata.
    """
    dimensions = header.dimensions
    metadata = {_META: json.dumps(header._asdict()).encode()}
    schema = pa.schema([pa.field(COLUMN, pa.list_(pa.float32(), dimensions))], metadata=metadata)
    with replacing(path) as partial, pq.ParquetWriter(partial, schema) as writer:
        for block in _regroup(vectors, max(1, GROUP_BYTES // (4 * dimensions))):
            flat = pa.array(np.ascontiguousarray(block, dtype=np.float32).ravel())
            writer.write_table(pa.table([pa.FixedSizeListArray.from_arrays(flat, dimensions)], schema=schema))


def _regroup(vectors: Iterable[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """Yield the vectors in blocks of at least `rows` rows, except for the last."""
    held: list[np.ndarray] = []
    for block in filter(len, vectors):
        held.append(block)
        if sum(map(len, held)) >= rows:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def read_header(path: Path) -> Header | None:
    """Return what a file of vectors says about itself; None for a Parquet file that colm did not write.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
        if _META not in metadata:
            return None
        header = Header(**json.loads(metadata[_META]))
        return header._replace(part=Part(*header.part))
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is not a file of vectors that this version of colm can read ({type(error).__name__}: {error}). "
            "Write one with colm features, or choose another file."
        ) from error


def check_features(path: Path, fingerprint: Mapping[str, Any]) -> None:
    """Check that vectors are those of a run's training rows. A file that colm features did not write passes.

    Args:
        path: the Parquet file, `selection.order_by` of the run.
        fingerprint: ``rows`` and ``digest`` of the run's training rows, see `fingerprint_data`.

    Raises:
        DataError: the file cannot be read, has only a part of the rows, or has the vectors of other rows.
    """
    header = read_header(path)
    if header is None:
        return
    if header.part.parts > 1:
        raise DataError(
            f"{path} has the vectors of part {header.part.number} of {header.part.parts}. Join all parts with "
            "colm features --join --out FILE.parquet, and give that file."
        )
    held = header.fingerprint
    if (held["rows"], held["digest"]) != (fingerprint["rows"], fingerprint["digest"]):
        raise DataError(
            f"{path} has the vectors of other rows: {held['rows']:,} ({held['digest'][:8]}), and the run trains on "
            f"{fingerprint['rows']:,} ({fingerprint['digest'][:8]}). Rows differ by their tokens and sources, and by "
            "what is held out (data.seed). Write the file again with colm features and the run's configuration."
        )


def join_parts(whole: Path) -> Header:
    """Write one file with the vectors of all its parts, which are next to it and stay.

    Args:
        whole: the file to write; its parts are ``NAME-<i>-of-<n>.parquet``.

    Raises:
        ConfigError: there are no parts, not all of them, or those of two divisions.
        DataError: a part cannot be read, or was made otherwise or from other rows than the first one.
    """
    headers: list[Header] = []
    parts = _find_parts(whole)
    paths = [part.path(whole) for part in parts]
    for part, path in zip(parts, paths, strict=True):
        header = read_header(path)
        if header is None or header.part != part:
            raise DataError(
                f"{path} was not written by colm features --shard {part.number}/{part.parts}. Move it away."
            )
        headers.append(header)
        why = describe_difference(headers[0], header)
        if why is None and not _alike(headers[0].first, header.first):
            why = "the vectors of the first rows, which both contain, are others"
        if why is not None:
            raise DataError(
                f"{path} does not fit {paths[0]}: {why}. Write all parts with the same command, on like machines."
            )
    header = headers[0]._replace(part=WHOLE)
    write_vectors(whole, (block for path in paths for block in _read_vectors(path)), header)
    return header


def _find_parts(whole: Path) -> list[Part]:
    pattern = re.compile(re.escape(whole.stem) + r"-(\d+)-of-(\d+)" + re.escape(whole.suffix))
    names = [path.name for path in whole.parent.iterdir()] if whole.parent.is_dir() else []
    matches = [match for name in names if (match := pattern.fullmatch(name))]
    found = sorted({part for match in matches if (part := Part(int(match[1]), int(match[2]))).number < part.parts})
    divisions = sorted({part.parts for part in found})
    if not found:
        raise ConfigError(f"There is no part of {whole}, such as {Part(0, 4).path(whole).name}, next to it.")
    if len(divisions) > 1:
        raise ConfigError(
            f"The parts of {whole} are of several divisions ({', '.join(map(str, divisions))}). Move those of all but "
            "one away."
        )
    if len(found) < divisions[0]:
        missing = next(number for number in range(divisions[0]) if Part(number, divisions[0]) not in found)
        raise ConfigError(
            f"{divisions[0] - len(found)} of the {divisions[0]} parts of {whole} are missing, such as "
            f"{Part(missing, divisions[0]).path(whole).name}. Write them with colm features --shard i/{divisions[0]}."
        )
    return found


def describe_difference(one: Header, other: Header) -> str | None:
    """Describe how `other` differs from `one` in what its vectors were made by and from, or return None."""
    if one.fingerprint != other.fingerprint:
        return "it has the vectors of other rows"
    keys = [key for key in one.settings | other.settings if one.settings.get(key) != other.settings.get(key)]
    if keys:
        return ", ".join(f"{key} is {other.settings.get(key)!r}, not {one.settings.get(key)!r}" for key in sorted(keys))
    return None


def _alike(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> bool:
    first, again = np.array(one), np.array(other)
    return first.shape == again.shape and np.abs(first - again).max() <= APART * np.abs(first).max()


def _read_vectors(path: Path) -> Iterator[np.ndarray]:
    """Yield a file's vectors, a row group at a time, (n, d) float32."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            column = file.read_row_group(group, columns=[COLUMN])[COLUMN].combine_chunks()
            yield column.flatten().to_numpy().reshape(len(column), column.type.list_size)
