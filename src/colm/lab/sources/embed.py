"""Embedders, which turn rows into vectors; each kind has its own file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from colm.errors import ConfigError
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.hidden import HiddenEmbedder
from colm.lab.sources.rows import Row
from colm.lab.sources.sentence import SentenceEmbedder
from colm.lab.sources.tfidf import TfidfEmbedder

State = Mapping[str, np.ndarray]
"""Arrays by name, from which a fitted embedder is restored."""


class Embedder(Protocol):
    """Turns rows into vectors."""

    centre: bool  # whether to subtract the mean
    chunk: int  # rows embedded between two saves

    def fit(self, rows: Sequence[Row]) -> None:
        """Fit to a sample of rows."""

    def embed(self, rows: Sequence[Row]) -> np.ndarray:
        """Return (len(rows), d) float16."""

    def state(self) -> dict[str, np.ndarray]:
        """Return the fitted state."""

    def load(self, state: State) -> None:
        """Load the state of a fitted embedder with the same settings."""


class Tuned(NamedTuple):
    """The model to fine-tune, for embeddings."""

    name: str
    max_length: int  # maximum tokens of a row
    load: Callable[[], tuple[Any, Any]]  # returns the model and its tokenizer


def make_embedder(config: ClusterConfig, tuned: Tuned | None) -> Embedder:
    """Return the embedder for the settings.

    Args:
        config: the clustering settings.
        tuned: the model to fine-tune, or None.

    Raises:
        ConfigError: a package or a model is missing.
    """
    if config.embedding == "tfidf":
        return TfidfEmbedder(config)
    if config.embedding == "sentence":
        return SentenceEmbedder(config)
    if tuned is None:
        raise ConfigError("embedding=model needs a model: set model, or use embedding=tfidf, which does not.")
    return HiddenEmbedder(*tuned.load(), config, tuned.max_length)
