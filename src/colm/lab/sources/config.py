"""The settings of clustering, and the rules that reassign the sources of rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from colm.errors import ConfigError
from colm.hints import Also, CountOrZero, Filled, Form, Range, Seed
from colm.step.sources import SourceName
from colm.typed import Settings

Clusters = Annotated[int, Range(2, 2**32)]

RANGE = (2, 64)
"""Numbers of clusters that ``auto`` chooses from."""


@dataclass(frozen=True)
class ClusterRange(Settings):
    """The smallest and the largest number of clusters to choose from."""

    least: Clusters
    """Smallest number of clusters."""

    most: Clusters
    """Largest number of clusters."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least >= self.most:
            raise ConfigError(f"clusters={{least: {self.least}, most: {self.most}}}: least must be below most.")


@dataclass(frozen=True)
class ClusterConfig(Settings):
    """Clustering settings.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    clusters: Annotated[
        Literal["auto"] | Clusters | ClusterRange,
        "a whole number of at least 2, auto, or a range such as {least: 2, most: 64}",
    ] = "auto"
    """Number of clusters, at least 2; ``auto``, or ``{least: 2, most: 64}`` for the number in it at the elbow of the
    mean squared distance."""

    embedding: Literal["tfidf", "sentence", "model"] = "tfidf"
    """``tfidf``, TF-IDF after a truncated SVD; ``sentence``, a sentence encoder; ``model``, the mean hidden state of
    the model to fine-tune."""

    encoder: Annotated[Filled, "the name or the folder of a sentence encoder"] = (
        "sentence-transformers/all-MiniLM-L6-v2"
    )
    """Hub name or folder of the sentence encoder."""

    layer: Annotated[int, "a whole number; 0 is the embedding, -1 the last layer"] = -1
    """Layer of the model's hidden states; 0 is the embedding, -1 the last, as `output_hidden_states` counts."""

    positions: Literal["labels", "all"] = "labels"
    """``labels`` averages the model's states at positions that predict a labeled token, ``all`` everywhere."""

    dimensions: Annotated[int, Range(1, 2**32)] = 64
    """Dimensions of the truncated SVD."""

    terms: Annotated[int, Range(1, 2**32)] = 30_000
    """Vocabulary size of TF-IDF; the most frequent words are kept."""

    algorithm: Literal["kmeans", "minibatch"] = "kmeans"
    """``kmeans``, or ``minibatch``, its variant for large samples and many clusters."""

    sample: Annotated[int, Range(100, 2**32)] = 50_000
    """Maximum rows, drawn at random, to fit vocabulary, SVD and centroids on; all rows are assigned."""

    restarts: Annotated[int, Range(1, 2**32)] = 4
    """K-means restarts; the best result is used."""

    seed: Seed = 0
    """Seed of the sample, the SVD and the centroids. Default: that of the data."""

    @property
    def range(self) -> tuple[int, int]:
        """The minimum and maximum number of clusters."""
        if isinstance(self.clusters, ClusterRange):
            return self.clusters.least, self.clusters.most
        return RANGE if self.clusters == "auto" else (self.clusters, self.clusters)


@dataclass(frozen=True)
class SourceRules(Settings):
    """Rules that reassign sources, applied in the order of the fields."""

    cluster: Annotated[ClusterConfig | None, Also(Clusters | Literal["auto", False])] = None
    """Cluster all rows, whatever their labels; a number is that of the clusters. Null: keep the labels."""

    map: dict[SourceName, SourceName] = field(default_factory=dict)
    """Old name -> new name."""

    split: dict[SourceName, Annotated[ClusterConfig, Also(Clusters | Literal["auto"])]] = field(default_factory=dict)
    """Source -> settings for clustering within the source."""

    merge_below: CountOrZero = 0
    """Sources with fewer rows are merged into one."""

    merged: SourceName = "other"
    """Name of the merged source."""

    labels: Annotated[
        Annotated[str, Form(r"[^/]\.parquet/*$", "")] | None, "a .parquet file that colm sources --cluster wrote"
    ] = None
    """Parquet file of the clusters; a split source's file is next to it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None:
            object.__setattr__(self, "labels", str(Path(self.labels)))

    @property
    def any(self) -> bool:
        """Whether any rule is set."""
        return bool(self.cluster or self.map or self.split or self.merge_below or self.labels)


def spell_out(clustering: Any, seed: int) -> Any:
    """Return a clustering as written in full: a number is that of its clusters, and `seed` the default seed.

    >>> spell_out(16, 3), spell_out({"seed": 5}, 3), spell_out(False, 3)
    ({'clusters': 16, 'seed': 3}, {'seed': 5}, None)
    """
    if clustering is None or clustering is False:
        return None
    given = clustering if isinstance(clustering, dict) else {"clusters": clustering}
    return given if given.get("seed") is not None else {**given, "seed": seed}
