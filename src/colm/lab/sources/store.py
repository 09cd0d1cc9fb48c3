"""A labelling on disk: a Parquet file with each row's source, and beside it what assigns new rows."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from colm.errors import DataError
from colm.lab.sources.centroids import Centroids, Tried
from colm.step.files import replacing

VERSION = 1
DAMAGED = (EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading arrays raises where bytes of the file are lost or changed; a changed flag is a RuntimeError."""

_META = b"colm"


class SavedLabels(NamedTuple):
    """What a labelling's file holds."""

    hashes: np.ndarray  # (n,) uint64, of the rows' texts
    clusters: np.ndarray  # (n,) int64
    names: list[str]  # of the clusters
    settings: dict[str, Any]  # of the clustering, and what was embedded by
    tried: list[Tried]


def centroids_path(path: Path) -> Path:
    """Return where what assigns new rows is kept: beside the labels."""
    return path.with_suffix(".centroids.npz")


def save_labels(path: Path, saved: SavedLabels, centroids: Centroids, state: Mapping[str, np.ndarray]) -> None:
    """Write a labelling, each of its two files whole or not at all, the labels last."""
    arrays = {"mean": centroids.mean, "points": centroids.points} | {
        f"state_{key}": value for key, value in state.items()
    }
    save_arrays(centroids_path(path), arrays)
    meta = {
        "version": VERSION,
        "settings": saved.settings,
        "names": saved.names,
        "tried": [tuple(one) for one in saved.tried],
    }
    names = pa.DictionaryArray.from_arrays(pa.array(saved.clusters.astype(np.int32)), pa.array(saved.names))
    columns = {"row": np.arange(len(saved.hashes)), "text_hash": saved.hashes, "source": names}
    table = pa.table(columns).replace_schema_metadata({_META: json.dumps(meta).encode()})
    with replacing(path) as partial:
        pq.write_table(table, partial)


def kept_path(path: Path, settings: Mapping[str, Any]) -> Path:
    """Return where a labelling with these settings is kept when another takes its place at `path`."""
    digest = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    return path.with_name(f"{path.stem}.{digest}{path.suffix}")


def keep_labels(path: Path) -> None:
    """Move a labelling with what assigns new rows to where it is kept."""
    kept = kept_path(path, load_labels(path).settings)
    if kept.exists():
        load_labels(kept)  # or it is another's
    if centroids_path(path).exists():
        check_centroids(kept)
        centroids_path(path).replace(centroids_path(kept))
    path.replace(kept)


def check_centroids(path: Path) -> None:
    """Refuse to write beside the labels at `path` where there is a file of somebody else. Raises DataError."""
    beside = centroids_path(path)
    try:
        if not os.path.lexists(beside) or {"mean", "points"} <= set(load_arrays(beside)):
            return
    except (OSError, ValueError, KeyError, *DAMAGED):
        pass
    raise DataError(f"{beside} is not what colm keeps beside its labels. Move it away, or choose another file.")


def load_labels(path: Path) -> SavedLabels:
    """Read a labelling.

    Raises:
        DataError: the file is none of colm's labellings, or of another version.
    """
    try:
        table = pq.read_table(path)
        meta = json.loads(table.schema.metadata[_META])
        if meta["version"] != VERSION:
            raise ValueError(f"version {meta['version']}, not {VERSION}")
        column = table["source"].combine_chunks()
        held = column.dictionary.to_pylist()
        place = np.array([meta["names"].index(name) for name in held], dtype=np.int64)
        clusters = place[column.indices.to_numpy()]
        hashes = table["text_hash"].to_numpy()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is no labelling that this version of colm has written ({type(error).__name__}: {error}). Give one "
            "that colm sources --cluster made, or another file."
        ) from error
    tried = [Tried(*one) for one in meta["tried"]]
    return SavedLabels(hashes, clusters, meta["names"], meta["settings"], tried)


def load_centroids(path: Path) -> tuple[Centroids, dict[str, np.ndarray]]:
    """Read what assigns new rows: the centroids, and the embedder's state.

    Args:
        path: of the labels.

    Raises:
        DataError: it is missing or not readable.
    """
    beside = centroids_path(path)
    try:
        arrays = load_arrays(beside)
        centroids = Centroids(arrays.pop("mean"), arrays.pop("points"))
    except (OSError, ValueError, KeyError, *DAMAGED) as error:
        raise DataError(
            f"{path} does not know some rows, and {beside}, which would assign them, can not be read "
            f"({type(error).__name__}). Put it back beside the labels, or delete {path} and cluster anew."
        ) from error
    return centroids, {key.removeprefix("state_"): value for key, value in arrays.items()}


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name to a file, whole or not at all."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]  # numpy's stub takes names for its option


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read arrays by name. Raises OSError, ValueError or one of `DAMAGED`."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # numpy leaves a damaged file open
        return dict(arrays)
