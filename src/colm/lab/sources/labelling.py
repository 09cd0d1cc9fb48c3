"""Cluster rows once: save the labels with the run, resume after an interruption, and assign new rows."""

from __future__ import annotations

import json
import logging
import os
import re
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from tqdm.auto import tqdm

from colm.errors import ConfigError, DataError
from colm.lab.sources.centroids import Centroids, Tried, fit_centroids
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.embed import Embedder, Tuned, make_embedder
from colm.lab.sources.rows import Rows
from colm.lab.sources.store import (
    SavedLabels,
    check_centroids,
    keep_labels,
    kept_path,
    load_arrays,
    load_centroids,
    load_labels,
    save_arrays,
    save_labels,
)
from colm.step.files import replace_file, replacing

logger = logging.getLogger(__name__)

FAMILIAR = 0.5
"""Minimum fraction of the rows that a saved labeling must cover; otherwise it belongs to another data set."""


PLAN = "plan.json"
_OWN = re.compile(r"embedder\.npz(\.\d+)?|embeddings-\d+\.(npy(\.\d+)?|part)|plan\.json\.\d+")
"""Files next to the plan, in the working folder of a labeling."""


class Labelling(NamedTuple):
    """The cluster of each row, by name."""

    names: list[str]
    tried: list[Tried]  # numbers of clusters; empty if the number was given
    path: Path
    new: int  # rows missing from the saved labeling


def label_rows(
    rows: Rows, config: ClusterConfig, path: Path, *, tuned: Tuned | None = None, renew: bool = False
) -> Labelling:
    """Return the cluster of each row: from the file at `path` if it exists, else computed and saved there.

    With several processes, the first one clusters and the others wait. An interrupted labeling resumes where it
    stopped. Rows that the file does not contain are assigned to the nearest centroid.

    Args:
        rows: rows to label.
        config: the clustering settings.
        path: Parquet file of the labels; its folder is created.
        tuned: the model to fine-tune, for embeddings.
        renew: cluster again if the file has other settings or other data, instead of raising. The old file is kept next
            to the new one, where runs that need it find it.

    Raises:
        ConfigError: the file was made with other settings; a needed name is taken by another file; a package or a model
            is missing.
        DataError: there are fewer rows, or fewer distinct ones, than clusters; rows have no text; the file is for other
            data.
    """
    hashes = rows.hashes()
    settings = describe(config, tuned)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")
    if os.path.lexists(lock) and (lock.is_symlink() or not lock.is_file() or lock.stat().st_size):
        raise ConfigError(f"{lock} is not colm's lock file. Move it away, or choose another folder.")
    with FileLock(lock):
        saved, complaint = _find(path, settings, hashes)
        if saved is None and (kept := kept_path(path, settings)).exists():
            found, _ = _find(kept, settings, hashes)
            if found is not None:
                saved, path = found, kept
        if saved is None:
            if complaint is not None and not renew:
                raise complaint
            if complaint is not None:
                logger.warning("%s Clustering again.", str(complaint).partition(". ")[0] + ".")
                keep_labels(path)
            saved = _make(rows, hashes, config, settings, path, tuned)
    names, new = _assign(rows, hashes, saved, config, path, tuned)
    return Labelling(names, saved.tried, path, new)


def _find(path: Path, settings: dict[str, Any], hashes: np.ndarray) -> tuple[SavedLabels | None, Exception | None]:
    """Return the labeling at `path` if it fits, or else the problem with it."""
    if not path.exists():
        return None, None
    saved = load_labels(path)
    complaint = _complain(saved, settings, hashes, path)
    return (saved, None) if complaint is None else (None, complaint)


def assign_rows(rows: Rows, config: ClusterConfig, path: Path, *, tuned: Tuned | None = None) -> list[str]:
    """Return the clusters of rows, all of which may be new to the labeling at `path`. Raises as `label_rows`."""
    return _assign(rows, rows.hashes(), load_labels(path), config, path, tuned)[0]


def _assign(
    rows: Rows, hashes: np.ndarray, saved: SavedLabels, config: ClusterConfig, path: Path, tuned: Tuned | None
) -> tuple[list[str], int]:
    known = _look_up(saved, hashes)
    fresh = np.flatnonzero(known < 0)
    if len(fresh):
        logger.info("%d of %d rows are new to %s and are assigned to the nearest cluster.", len(fresh), len(rows), path)
        centroids, state = load_centroids(path)
        embedder = make_embedder(config, tuned)
        embedder.load(state)
        for start in range(0, len(fresh), embedder.chunk):
            part = fresh[start : start + embedder.chunk]
            known[part] = centroids.assign(embedder.embed(rows.take(part.tolist())))
    return [saved.names[cluster] for cluster in known], len(fresh)


def describe(config: ClusterConfig, tuned: Tuned | None) -> dict[str, Any]:
    """Return only the settings that affect the labels."""
    values = asdict(config)
    unused = {
        "tfidf": ("encoder", "layer", "positions"),
        "sentence": ("layer", "positions", "dimensions", "terms"),
        "model": ("encoder", "dimensions", "terms"),
    }[config.embedding]
    held = {key: value for key, value in values.items() if key not in unused}
    if config.embedding == "model" and tuned is not None:
        held |= {"model": tuned.name, "max_length": tuned.max_length}
    return held


def _complain(saved: SavedLabels, settings: dict[str, Any], hashes: np.ndarray, path: Path) -> Exception | None:
    differing = [
        key for key in sorted(set(settings) | set(saved.settings)) if settings.get(key) != saved.settings.get(key)
    ]
    if differing:
        pairs = ", ".join(f"{key}={saved.settings.get(key)!r}, not {settings.get(key)!r}" for key in differing)
        return ConfigError(
            f"{path} was made with other settings ({pairs}). Delete it to cluster again, or use another file with "
            "sources.labels."
        )
    share = float(np.isin(hashes, saved.hashes).mean())
    if share < FAMILIAR:
        return DataError(
            f"{path} does not fit the data: it was made from {len(saved.hashes):,} rows and has {share:.0%} of the "
            f"{len(hashes):,} here, below {FAMILIAR:.0%}. Delete it to cluster again, or use another file with "
            "sources.labels."
        )
    return None


def _look_up(saved: SavedLabels, hashes: np.ndarray) -> np.ndarray:
    """Return each row's cluster, -1 if its text is unknown."""
    known, first = np.unique(saved.hashes, return_index=True)
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.where(known[place] == hashes, saved.clusters[first[place]], -1)


def _make(
    rows: Rows,
    hashes: np.ndarray,
    config: ClusterConfig,
    settings: dict[str, Any],
    path: Path,
    tuned: Tuned | None,
) -> SavedLabels:
    distinct = len(np.unique(hashes))
    least = config.range[0]
    if distinct < 2:
        raise DataError(
            f"All {len(rows)} rows have the same text, so there is nothing to cluster. Remove sources.cluster, "
            "or check that data.columns maps the columns in which rows differ."
        )
    if distinct < least:
        what = f"{len(rows)} rows" if distinct == len(rows) else f"{len(rows)} rows with {distinct} distinct texts"
        raise DataError(
            f"There are {what}, fewer than clusters={least}. Set sources.cluster.clusters to at most {distinct}, or "
            "give more data."
        )
    check_centroids(path)
    embedder = make_embedder(config, tuned)
    folder = path.with_name(path.name + ".partial")
    plan = json.dumps({"settings": settings, "data": blake2b(hashes.tobytes(), digest_size=16).hexdigest()})
    _begin(folder, plan)
    draw = np.random.default_rng(config.seed)
    sample = np.arange(len(rows))
    if len(rows) > config.sample:
        sample = np.sort(draw.choice(len(rows), config.sample, replace=False))
    _fit_embedder(embedder, rows, sample, folder)
    chunks = _embed(embedder, rows, folder)
    centroids, tried = fit_centroids(_gather(chunks, sample, embedder.chunk), config, centre=embedder.centre)
    clusters = np.concatenate([centroids.assign(np.load(chunk)) for chunk in chunks])
    order = np.argsort(-np.bincount(clusters, minlength=len(centroids.points)), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    centroids = Centroids(centroids.mean, centroids.points[order])
    width = len(str(len(order) - 1))
    names = [f"cluster-{number:0{width}}" for number in range(len(order))]
    saved = SavedLabels(hashes, rank[clusters], names, settings, tried)
    save_labels(path, saved, centroids, embedder.state())
    _remove(folder)
    return saved


def _begin(folder: Path, plan: str) -> None:
    """Keep the files of an interrupted labeling of the same data and settings, and delete all others."""
    path = folder / PLAN
    if path.exists() and path.read_text(encoding="utf-8") == plan:
        return
    _remove(folder)
    folder.mkdir(parents=True)
    replace_file(path, plan)


def _remove(folder: Path) -> None:
    """Delete a labeling's working files; the plan last, as it marks the folder as colm's."""
    if not os.path.lexists(folder):
        return
    held = [path for path in folder.iterdir() if path.name != PLAN] if folder.is_dir() else [folder]
    if (held and not (folder / PLAN).is_file()) or any(not _OWN.fullmatch(path.name) for path in held):
        raise ConfigError(f"{folder} contains files that colm did not write. Move it away, or choose another folder.")
    for path in held:
        path.unlink()
    (folder / PLAN).unlink(missing_ok=True)
    folder.rmdir()


def _fit_embedder(embedder: Embedder, rows: Rows, sample: np.ndarray, folder: Path) -> None:
    path = folder / "embedder.npz"
    if path.exists():
        embedder.load(load_arrays(path))
        return
    embedder.fit(rows.take(sample.tolist()))
    save_arrays(path, embedder.state())


def _embed(embedder: Embedder, rows: Rows, folder: Path) -> list[Path]:
    """Embed all rows, one file per chunk."""
    starts = range(0, len(rows), embedder.chunk)
    paths = [folder / f"embeddings-{number:06}.npy" for number in range(len(starts))]
    with tqdm(total=len(rows), desc="Embedding", unit=" rows") as bar:
        for start, path in zip(starts, paths, strict=True):
            stop = min(start + embedder.chunk, len(rows))
            if not path.exists():
                with replacing(path) as partial, partial.open("wb") as file:
                    np.save(file, embedder.embed(rows.read(start, stop)))
            bar.update(stop - start)
    return paths


def _gather(chunks: list[Path], sample: np.ndarray, size: int) -> np.ndarray:
    """Return the sample's embeddings, (m, d) float16."""
    parts = []
    for number, path in enumerate(chunks):
        held = sample[(sample >= number * size) & (sample < (number + 1) * size)] - number * size
        if len(held):
            parts.append(np.load(path)[held])
    return np.concatenate(parts)
