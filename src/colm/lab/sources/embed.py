"""What turns rows into vectors; one file for each kind."""

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
"""Arrays by name, from which an embedder that was fitted is made again."""


class Embedder(Protocol):
    """Rows to vectors."""

    centre: bool  # whether the mean should be taken off
    chunk: int  # rows that are embedded between two saves

    def fit(self, rows: Sequence[Row]) -> None:
        """Learn what there is to learn from a sample of rows."""

    def embed(self, rows: Sequence[Row]) -> np.ndarray:
        """Return (len(rows), d) float16."""

    def state(self) -> dict[str, np.ndarray]:
        """Return what was learned."""

    def load(self, state: State) -> None:
        """Take up what another embedder of the same settings has learned."""


class Tuned(NamedTuple):
    """The model that is tuned, for embeddings by it."""

    name: str
    max_length: int  # tokens of a row
    load: Callable[[], tuple[Any, Any]]  # returns the model and its tokenizer


def make_embedder(config: ClusterConfig, tuned: Tuned | None) -> Embedder:
    """Return the embedder that the settings name.

    Args:
        config: the settings.
        tuned: the model that is tuned, if there is one.

    Raises:
        ConfigError: a package or a model is missing.
    """
    if config.embedding == "tfidf":
        return TfidfEmbedder(config)
    if config.embedding == "sentence":
        return SentenceEmbedder(config)
    if tuned is None:
        raise ConfigError("embedding=model needs a model: set model, or use embedding=tfidf, which needs none.")
    return HiddenEmbedder(*tuned.load(), config, tuned.max_length)
