"""Validated clustering settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from colm.config_checks import require_count
from colm.errors import ConfigError
from colm.typed import Count, Range, Seed, check_keys, convert_known, hints_of, read_value

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
    embedding: Literal["tfidf", "sentence", "model"] = "tfidf"
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    layer: int = -1
    positions: Literal["labels", "all"] = "labels"
    dimensions: Count = 64
    terms: Count = 30_000
    algorithm: Literal["kmeans", "minibatch"] = "kmeans"
    sample: Annotated[int, Range(100)] = 50_000
    restarts: Count = 4
    seed: Seed = 0

    def __post_init__(self) -> None:
        for name, hint in hints_of(type(self)).items():
            if name not in ("clusters", "layer", "encoder"):  # whose messages say more
                object.__setattr__(self, name, read_value(name, hint, getattr(self, name)))
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
                require_count(f"clusters.{name}", value, minimum=2)
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
        check_keys(values, hints_of(cls), "of clustering")
        return cls(**convert_known(hints_of(cls), values))

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as a mapping."""
        values = asdict(self)
        return values | {"clusters": dict(self.clusters)} if isinstance(self.clusters, Mapping) else values
