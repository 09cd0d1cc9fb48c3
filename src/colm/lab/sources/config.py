"""How rows are clustered, each setting checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
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
    """How rows become clusters.

    Attributes:
        clusters: their number, at least 2; ``auto``, or ``{least: 2, most: 64}``, for the number in that range at the
            elbow of the mean squared distance.
        embedding: ``tfidf``, words' TF-IDF after a truncated SVD; ``sentence``, a sentence encoder; ``model``, the mean
            hidden state of the model that is tuned.
        encoder: the sentence encoder, a hub name or a folder.
        layer: of the model's hidden states; 0 is the embedding, -1 the last, as `output_hidden_states` counts.
        positions: ``labels`` averages the model's states where it has a token to predict, ``all`` everywhere.
        dimensions: of the truncated SVD.
        terms: most words that TF-IDF knows, the most frequent.
        algorithm: ``kmeans`` or ``minibatch``, its variant for large samples and many clusters.
        sample: rows at most, drawn at random, that vocabulary, SVD and centroids are fitted on; all rows are assigned.
        restarts: of k-means; the best is taken.
        seed: of the sample, the SVD and the centroids.

    Raises:
        ConfigError: a value of the wrong kind or out of range.
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
        """The least and the most clusters that may come out."""
        if isinstance(self.clusters, Mapping):
            return self.clusters["least"], self.clusters["most"]
        return (self.clusters, self.clusters) if isinstance(self.clusters, int) else RANGE

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClusterConfig:
        """Make one of settings by name. Raises ConfigError, also for an unknown name."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"Unknown setting {key!r} of clustering.{suggest(str(key), known)} Known: {', '.join(known)}."
                )
        return cls(**convert_known(hints_of(cls), values))

    def to_dict(self) -> dict[str, Any]:
        """Return all settings by name."""
        values = asdict(self)
        return values | {"clusters": dict(self.clusters)} if isinstance(self.clusters, Mapping) else values


def _require_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**32:  # as scikit-learn's seeds
        raise ConfigError(f"{name}={value!r} must be a whole number of at least {least}.")
