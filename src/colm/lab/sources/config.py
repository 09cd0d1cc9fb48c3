"""Validated settings: how to cluster rows, and the rules that reassign sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from colm.errors import ConfigError, suggest
from colm.typed import convert_known, hints_of

EMBEDDINGS = ("tfidf", "sentence", "model")
ALGORITHMS = ("kmeans", "minibatch")
POSITIONS = ("labels", "all")
RANGE = (2, 64)
"""Numbers of clusters that ``auto`` chooses from."""


@dataclass(frozen=True)
class ClusterConfig:
    """Clustering settings.

    Attributes:
        clusters: number of clusters, at least 2; ``auto``, or ``{least: 2, most: 64}`` for the number in it at the
            elbow of the mean squared distance.
        embedding: ``tfidf``, TF-IDF after a truncated SVD; ``sentence``, a sentence encoder; ``model``, the mean
            hidden state of the model to fine-tune.
        encoder: hub name or folder of the sentence encoder.
        layer: of the model's hidden states; 0 is the embedding, -1 the last, as `output_hidden_states` counts.
        positions: ``labels`` averages the model's states at positions that predict a labeled token, ``all`` everywhere.
        dimensions: dimensions of the truncated SVD.
        terms: vocabulary size of TF-IDF; the most frequent words are kept.
        algorithm: ``kmeans`` or ``minibatch``, its variant for large samples and many clusters.
        sample: maximum rows, drawn at random, to fit vocabulary, SVD and centroids on; all rows are assigned.
        restarts: k-means restarts; the best result is used.
        seed: random seed of the sample, the SVD and the centroids.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    clusters: int | str | Mapping[str, int] = "auto"
    embedding: str = "tfidf"
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    layer: int = -1
    positions: str = "labels"
    dimensions: int = 64
    terms: int = 30_000
    algorithm: str = "kmeans"
    sample: int = 50_000
    restarts: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, options in (("embedding", EMBEDDINGS), ("algorithm", ALGORITHMS), ("positions", POSITIONS)):
            value = getattr(self, name)
            if value not in options:
                raise ConfigError(f"{name}={value!r} is not one of {', '.join(options)}.{suggest(str(value), options)}")
        for name, least in (("dimensions", 1), ("terms", 1), ("sample", 100), ("restarts", 1), ("seed", 0)):
            _require_whole(name, getattr(self, name), least)
        if not isinstance(self.layer, int) or isinstance(self.layer, bool):
            raise ConfigError(f"layer={self.layer!r} must be a whole number; 0 is the embedding, -1 the last layer.")
        if not isinstance(self.encoder, str) or not self.encoder:
            raise ConfigError(f"encoder={self.encoder!r} must be the name or the folder of a sentence encoder.")
        self._check_clusters()

    def _check_clusters(self) -> None:
        if self.clusters == "auto":
            return
        if isinstance(self.clusters, Mapping):
            if set(self.clusters) != {"least", "most"}:
                raise ConfigError(f"clusters={dict(self.clusters)!r} must have least and most: {{least: 2, most: 64}}.")
            for name, value in self.clusters.items():
                _require_whole(f"clusters.{name}", value, 2)
            if self.clusters["least"] >= self.clusters["most"]:
                raise ConfigError(f"clusters={dict(self.clusters)!r}: least must be below most.")
            return
        if not isinstance(self.clusters, int) or isinstance(self.clusters, bool) or self.clusters < 2:
            raise ConfigError(
                f"clusters={self.clusters!r} must be a whole number of at least 2, auto, or a range such as "
                "{least: 2, most: 64}."
            )

    @property
    def range(self) -> tuple[int, int]:
        """The minimum and maximum number of clusters."""
        if isinstance(self.clusters, Mapping):
            return self.clusters["least"], self.clusters["most"]
        return (self.clusters, self.clusters) if isinstance(self.clusters, int) else RANGE

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClusterConfig:
        """Create a config from settings by name. Raises ConfigError for invalid values and unknown names."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"Unknown setting {key!r} of clustering.{suggest(str(key), known)} Known: {', '.join(known)}."
                )
        return cls(**convert_known(hints_of(cls), values))

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as a mapping."""
        values = asdict(self)
        return values | {"clusters": dict(self.clusters)} if isinstance(self.clusters, Mapping) else values


@dataclass(frozen=True)
class SourceRules:
    """Rules that reassign sources, applied in this order.

    Attributes:
        cluster: cluster all rows, whatever their labels; None to keep the labels.
        map: old name -> new name.
        split: source -> settings for clustering within the source.
        merge_below: sources with fewer rows are merged into one.
        merged: name of the merged source.
        labels: file of the clusters; a split source's file is next to it.
    """

    cluster: ClusterConfig | None = None
    map: Mapping[str, str] = field(default_factory=dict)
    split: Mapping[str, ClusterConfig] = field(default_factory=dict)
    merge_below: int = 0
    merged: str = "other"
    labels: Path | None = None

    @property
    def any(self) -> bool:
        """Whether any rule is set."""
        return bool(self.cluster or self.map or self.split or self.merge_below or self.labels)

    def to_dict(self) -> dict[str, Any]:
        """Return the rules in the format of a configuration."""
        return {
            "cluster": self.cluster.to_dict() if self.cluster else None,
            "map": dict(self.map),
            "split": {name: config.to_dict() for name, config in self.split.items()},
            "merge_below": self.merge_below,
            "merged": self.merged,
            "labels": str(self.labels) if self.labels else None,
        }


def _require_whole(name: str, value: Any, least: int) -> None:
    if (
        not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**32
    ):  # the range of scikit-learn's seeds
        raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}.")
