"""Store a labeling: a Parquet file with each row's source, and a file next to it with the centroids."""

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

from colm.errors import ConfigError, DataError, one_line
from colm.lab.sources.centroids import Centroids, Tried
from colm.lab.sources.config import ClusterConfig
from colm.step.files import replacing

VERSION = 1
DAMAGED = (EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Errors that reading arrays raises for a damaged file; a changed flag raises RuntimeError."""

_META = b"colm"
_ABOUT = "about"
"""What the centroids' file says about itself, so that it assigns rows without the labels: JSON as bytes."""


class Clustering(NamedTuple):
    """Fitted clusters, without the rows that they were fitted on."""

    config: ClusterConfig
    names: list[str]  # of the clusters
    centroids: Centroids
    state: dict[str, np.ndarray]  # of the embedder
    digest: str  # of the file


class SavedLabels(NamedTuple):
    """The content of a label file."""

    hashes: np.ndarray  # (n,) uint64, of the rows' texts
    clusters: np.ndarray  # (n,) int64
    names: list[str]  # of the clusters
    settings: dict[str, Any]  # of the clustering and the embedder
    tried: list[Tried]


def centroids_path(path: Path) -> Path:
    """Return the file of the centroids and the embedder's state, next to the labels."""
    return path.with_suffix(".centroids.npz")


def save_labels(path: Path, saved: SavedLabels, centroids: Centroids, state: Mapping[str, np.ndarray]) -> None:
    """Write a labeling, each of its two files atomically, the labels last."""
    meta = {"version": VERSION, "settings": saved.settings, "names": saved.names}
    arrays = {"mean": centroids.mean, "points": centroids.points}
    arrays |= {f"state_{key}": value for key, value in state.items()}
    arrays[_ABOUT] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    save_arrays(centroids_path(path), arrays)
    meta["tried"] = [tuple(one) for one in saved.tried]
    names = pa.DictionaryArray.from_arrays(pa.array(saved.clusters.astype(np.int32)), pa.array(saved.names))
    columns = {"row": np.arange(len(saved.hashes)), "text_hash": saved.hashes, "source": names}
    table = pa.table(columns).replace_schema_metadata({_META: json.dumps(meta).encode()})
    with replacing(path) as partial:
        pq.write_table(table, partial)


def kept_path(path: Path, settings: Mapping[str, Any]) -> Path:
    """Return where to keep a labeling with these settings when another one replaces it at `path`."""
    digest = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=4).hexdigest()
    return path.with_name(f"{path.stem}.{digest}{path.suffix}")


def keep_labels(path: Path) -> None:
    """Move a labeling and its centroids to its `kept_path`."""
    kept = kept_path(path, load_labels(path).settings)
    if kept.exists():
        load_labels(kept)  # otherwise it belongs to someone else
    if centroids_path(path).exists():
        check_centroids(kept)
        centroids_path(path).replace(centroids_path(kept))
    path.replace(kept)


def check_centroids(path: Path) -> None:
    """Raise DataError if the centroids file for `path` exists and is not colm's."""
    file = centroids_path(path)
    try:
        if not os.path.lexists(file) or {"mean", "points"} <= set(load_arrays(file)):
            return
    except (OSError, ValueError, KeyError, *DAMAGED):
        pass
    raise DataError(f"{file} is not colm's centroids file. Move it away, or choose another label file.")


def load_labels(path: Path) -> SavedLabels:
    """Read a labeling.

    Raises:
        DataError: the file is not a label file written by this version of colm.
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
            f"{path} is not a label file written by this version of colm ({type(error).__name__}: {error}). Use one "
            "from colm sources --cluster, or another path."
        ) from error
    tried = [Tried(*one) for one in meta["tried"]]
    return SavedLabels(hashes, clusters, meta["names"], meta["settings"], tried)


def saved_clustering(path: Path) -> ClusterConfig:
    """Return the settings that made a saved labelling.

    Raises:
        ConfigError: the file does not exist.
        DataError: the file is not a labelling.
    """
    if not path.is_file():
        raise ConfigError(
            f"There is no file {str(path)!r} (sources.labels). Make it with colm sources --cluster DATA --out {path}, "
            "or also set sources.cluster, which creates it."
        )
    return _read_config(load_labels(path).settings)


def _read_config(settings: Mapping[str, Any]) -> ClusterConfig:
    return ClusterConfig.read(
        "sources.cluster", {key: value for key, value in settings.items() if key not in ("model", "max_length")}
    )


def load_clustering(file: Path) -> Clustering:
    """Read fitted clusters from the file that is next to their labels, see `centroids_path`.

    Raises:
        ConfigError: there is no such file.
        DataError: it is damaged, not colm's, or of another version.
    """
    if not file.is_file():
        raise ConfigError(
            f"There is no file {str(file)!r} with clusters. colm sources --cluster DATA --out labels.parquet writes "
            "it next to the labels, as labels.centroids.npz."
        )
    try:
        content = file.read_bytes()
        arrays = load_arrays(file)
        about = json.loads(arrays.pop(_ABOUT).tobytes())
        if about["version"] != VERSION:
            raise ValueError(f"version {about['version']}, not {VERSION}")
        config, names = _read_config(about["settings"]), about["names"]
        centroids = Centroids(arrays.pop("mean"), arrays.pop("points"))
    except (OSError, ValueError, KeyError, TypeError, *DAMAGED) as error:
        raise DataError(
            f"{file} does not hold the clusters of this version of colm ({type(error).__name__}: {one_line(error)}). "
            "Give the .centroids.npz file that colm sources --cluster writes next to the labels; if it is older, "
            "cluster again."
        ) from error
    state = {key.removeprefix("state_"): value for key, value in arrays.items()}
    return Clustering(config, names, centroids, state, blake2b(content, digest_size=16).hexdigest())


def load_centroids(path: Path) -> tuple[Centroids, dict[str, np.ndarray]]:
    """Read the centroids and the embedder's state, which assign new rows.

    Args:
        path: the label file.

    Raises:
        DataError: the file is missing or not readable.
    """
    file = centroids_path(path)
    try:
        arrays = load_arrays(file)
        centroids = Centroids(arrays.pop("mean"), arrays.pop("points"))
    except (OSError, ValueError, KeyError, *DAMAGED) as error:
        raise DataError(
            f"{path} lacks some of the rows, and {file}, which would assign them, cannot be read "
            f"({type(error).__name__}). Restore that file, or delete {path} to cluster again."
        ) from error
    arrays.pop(_ABOUT, None)
    return centroids, {key.removeprefix("state_"): value for key, value in arrays.items()}


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name to a file, atomically."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]  # numpy's stub takes names for its options


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read arrays by name. Raises OSError, ValueError or one of `DAMAGED`."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:  # numpy leaves a damaged file open
        return dict(arrays)
