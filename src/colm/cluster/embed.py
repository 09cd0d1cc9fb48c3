"""What turns rows into vectors; one file for each kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from colm.cluster.config import ClusterConfig
from colm.cluster.rows import Row
from colm.cluster.tfidf import TfidfEmbedder

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


def make_embedder(config: ClusterConfig, load_tuned: Callable[[], tuple[Any, Any]] | None) -> Embedder:
    """Return the embedder that the settings name.

    Args:
        config: the settings.
        load_tuned: returns the model that is tuned and its tokenizer; None where there is none.

    Raises:
        ConfigError: a package or a model is missing.
    """
    return TfidfEmbedder(config)
