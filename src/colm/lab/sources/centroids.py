"""k-means on embeddings: fit on a sample, assign all rows, choose the number of clusters."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin, silhouette_score
from threadpoolctl import threadpool_limits

from colm.errors import DataError
from colm.lab.sources.config import ClusterConfig

logger = logging.getLogger(__name__)

JUDGED = 4_000
"""Maximum rows for silhouettes, whose time grows with the square of the rows."""
STEP = 2**0.5
"""Factor between the numbers of clusters to try."""


class Centroids(NamedTuple):
    """Cluster centroids, ordered by the number of sample rows, largest first."""

    mean: np.ndarray  # (d,) float32, subtracted from embeddings before scaling to unit length
    points: np.ndarray  # (k, d) float32

    def assign(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the number of the nearest centroid of each row, (n,) int64; ties go to the lower number.

        Args:
            embeddings: (n, d) of any float dtype.
        """
        nearest: np.ndarray = pairwise_distances_argmin(_scale(embeddings, self.mean), self.points)
        return nearest.astype(np.int64)


class Tried(NamedTuple):
    """Scores of one number of clusters."""

    clusters: int
    silhouette: float  # mean over the evaluated rows, -1 to 1
    inertia: float  # mean squared distance to the nearest centroid


def fit_centroids(sample: np.ndarray, config: ClusterConfig, *, centre: bool) -> tuple[Centroids, list[Tried]]:
    """Cluster a sample of embeddings.

    From a range of numbers, the one at the elbow is chosen, see `find_elbow`.

    Args:
        sample: (m, d) of any float dtype.
        config: the clustering settings.
        centre: subtract the mean first; neural embeddings share a large uninformative component.

    Returns:
        The centroids, and the numbers tried (empty if the number is given).

    Raises:
        DataError: there are fewer distinct embeddings than clusters.
    """
    mean = sample.astype(np.float32).mean(0) if centre else np.zeros(sample.shape[1], dtype=np.float32)
    points = _scale(sample, mean)
    distinct = len(np.unique(np.round(points, 3), axis=0))
    least, most = config.range
    if distinct < least:
        raise DataError(
            f"The rows have {distinct} distinct embeddings ({config.embedding}), fewer than clusters={least}: many are "
            f"the same text, or too similar. Set sources.cluster.clusters to at most {distinct}, or remove "
            "duplicates."
        )
    tried: list[Tried] = []
    chosen = least
    if most > least:
        tried = [_judge(points, number, config) for number in numbers_between(least, min(most, distinct))]
        chosen = find_elbow(tried)
    fitted = _fit(points, chosen, config)
    order = np.argsort(-np.bincount(fitted.labels_, minlength=chosen), kind="stable")
    return Centroids(mean, fitted.cluster_centers_[order].astype(np.float32)), tried


def find_elbow(tried: Sequence[Tried]) -> int:
    """Return the number of clusters at the elbow of the mean squared distance.

    At the elbow, the curve lies farthest below the straight line from its first to its last point; ties go to the
    lowest number. If the curve is never below the line, the largest number is returned. The elbow depends on the
    range: a range that ends at more clusters has its elbow at more.

    Args:
        tried: at least two numbers, ascending.

    Source: Satopää et al. 2011, "Finding a 'Kneedle' in a Haystack".
    """
    numbers = np.array([one.clusters for one in tried], dtype=np.float64)
    inertia = np.array([one.inertia for one in tried], dtype=np.float64)
    if inertia[-1] >= inertia[0]:
        return tried[-1].clusters
    fallen = (inertia[0] - inertia) / (inertia[0] - inertia[-1])
    below = np.round(fallen - (numbers - numbers[0]) / (numbers[-1] - numbers[0]), 6)
    return tried[int(below.argmax())].clusters if below.max() > 0 else tried[-1].clusters


def numbers_between(least: int, most: int) -> list[int]:
    """Return the numbers of clusters to try, growing by a factor of about the square root of 2.

    >>> numbers_between(2, 16)
    [2, 3, 4, 6, 8, 11, 16]
    """
    found, value = [], float(least)
    while round(value) < most:
        found.append(round(value))
        value *= STEP
        if round(value) <= found[-1]:
            value = found[-1] + 1.0
    return [*found, most]


def _judge(points: np.ndarray, number: int, config: ClusterConfig) -> Tried:
    fitted = _fit(points, number, config)
    judged = np.random.default_rng(config.seed).permutation(len(points))[:JUDGED]
    labels = fitted.labels_[judged]
    seen = len(np.unique(labels))
    # A silhouette needs at least two clusters, and fewer clusters than rows.
    score = float(silhouette_score(points[judged], labels)) if 1 < seen < len(judged) else -1.0
    return Tried(number, score, float(fitted.inertia_) / len(points))


def _fit(points: np.ndarray, number: int, config: ClusterConfig) -> KMeans | MiniBatchKMeans:
    options = {"n_init": config.restarts, "random_state": config.seed}
    with threadpool_limits(limits=1), warnings.catch_warnings():  # threads would sum in arbitrary order
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct points than clusters, checked before
        if config.algorithm == "minibatch":
            return MiniBatchKMeans(number, batch_size=4096, **options).fit(points)
        return KMeans(number, **options).fit(points)


def _scale(embeddings: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Subtract the mean and scale each row to unit length; rows of zeros stay zero."""
    moved = embeddings.astype(np.float32) - mean
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    scaled: np.ndarray = moved / np.where(lengths > 1e-6, lengths, 1.0)
    return scaled
