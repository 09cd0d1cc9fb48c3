"""The number of clusters and the nearest centroid on clear cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from colm.errors import DataError
from colm.lab.sources.centroids import Centroids, Tried, find_elbow, fit_centroids, numbers_between
from colm.lab.sources.config import ClusterConfig


def groups(number: int, each: int = 60, width: int = 8, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    centres = np.eye(width)[:number] * 5
    return np.concatenate([centre + draw.normal(scale=0.3, size=(each, width)) for centre in centres])


@pytest.mark.parametrize("algorithm", ["kmeans", "minibatch"])
@pytest.mark.parametrize("number", [3, 4, 6])
def test_auto_finds_the_number_of_groups(number: int, algorithm: str) -> None:
    config = ClusterConfig(clusters={"least": 2, "most": 8}, algorithm=algorithm)
    centroids, tried = fit_centroids(groups(number), config, centre=True)
    assert len(centroids.points) == number
    assert [one.clusters for one in tried] == [2, 3, 4, 6, 8]
    assert max(tried, key=lambda one: one.silhouette).clusters == number  # here both criteria agree
    assert len(np.unique(centroids.assign(groups(number)).reshape(number, -1), axis=1)) == number


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=8), st.integers(2, 9), st.sampled_from([1e-200, 1e-6, 1.0, 1e9])
)
def test_the_elbow_is_farthest_below_the_line(drops: list[int], least: int, unit: float) -> None:
    inertia = np.cumsum(drops[::-1])[::-1] * unit
    tried = [Tried(least + 3 * place, 0.0, float(value)) for place, value in enumerate(inertia)]
    found = find_elbow(tried)
    line = np.linspace(inertia[0], inertia[-1], len(inertia))  # the numbers are evenly spaced
    below = line - inertia
    place = [one.clusters for one in tried].index(found)
    if below.max() <= 1e-4 * inertia[0]:  # a straight line, or one above it
        assert below[place] >= below.max() - 1e-4 * inertia[0] or place == len(inertia) - 1
    else:
        assert below[place] >= below.max() - 1e-4 * inertia[0]


def test_a_straight_line_has_no_elbow() -> None:
    assert find_elbow([Tried(2, 0.0, 3.0), Tried(3, 0.0, 2.0), Tried(4, 0.0, 1.0)]) == 4
    assert find_elbow([Tried(2, 0.0, 3.0), Tried(3, 0.0, 1.2), Tried(4, 0.0, 1.0)]) == 3


def test_auto_stops_at_the_distinct_embeddings() -> None:
    points = np.repeat(np.eye(4), 30, axis=0)
    centroids, tried = fit_centroids(points, ClusterConfig(), centre=False)
    assert tried[-1].clusters == 4
    assert len(centroids.points) == 4


def test_too_few_distinct_embeddings_are_rejected() -> None:
    with pytest.raises(DataError, match="2 distinct embeddings .tfidf., fewer than clusters=3.*at most 2"):
        fit_centroids(np.repeat(np.eye(2), 30, axis=0), ClusterConfig(clusters=3), centre=False)


@given(
    rows=arrays.arrays(np.float32, (7, 3), elements=st.floats(-4, 4, width=32)),
    points=arrays.arrays(np.float32, (4, 3), elements=st.floats(-1, 1, width=32)),
)
def test_the_nearest_centroid_is_the_nearest(rows: np.ndarray, points: np.ndarray) -> None:
    mean = np.full(3, 0.5, dtype=np.float32)
    found = Centroids(mean, points).assign(rows)
    for row, number in zip(rows.astype(np.float64) - 0.5, found, strict=True):
        length = np.sqrt((row**2).sum())
        scaled = row / length if length > 1e-6 else row
        distances = ((scaled - points) ** 2).sum(1)
        assert distances[number] <= distances.min() + 1e-4


@given(least=st.integers(2, 40), more=st.integers(1, 60))
def test_numbers_grow_from_the_least_to_the_most(least: int, more: int) -> None:
    found = numbers_between(least, least + more)
    assert found[0] == least
    assert found[-1] == least + more
    assert found == sorted(set(found))
    assert len(found) <= 4 + 2 * np.log2(1 + more / least) + 4
