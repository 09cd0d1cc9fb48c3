"""Embeddings of words: TF-IDF with a truncated SVD (latent semantic analysis)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd

from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.rows import Row

_DIGIT = re.compile(r"\d")
TERM = r"\w{1,40}|[^\w\s]"
"""A word or a punctuation sign; signs distinguish programs and formulas from prose."""


class TfidfEmbedder:
    """Sublinear TF-IDF of words and signs, all digits equal, projected on the leading right singular vectors.

    Args:
        config: `dimensions`, `terms` and `seed`.
    """

    centre = False
    chunk = 20_000

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config
        self.vectorizer = _vectorizer(max_features=config.terms)
        self.components = np.empty((0, 0), dtype=np.float32)  # (d, terms)

    def fit(self, rows: Sequence[Row]) -> None:
        """Learn the words, their frequencies and the projection."""
        weights = self.vectorizer.fit_transform([row.text for row in rows])
        # There are at most as many dimensions as rows or words.
        dimensions = max(1, min(self.config.dimensions, *weights.shape))
        components = randomized_svd(weights, dimensions, random_state=self.config.seed)[2]
        self.components = components.astype(np.float32)

    def embed(self, rows: Sequence[Row]) -> np.ndarray:
        """Return (len(rows), d) float16; zero for a row without known words."""
        weights: csr_matrix = self.vectorizer.transform([row.text for row in rows])
        embedded: np.ndarray = weights @ self.components.T
        return embedded.astype(np.float16)

    def state(self) -> dict[str, np.ndarray]:
        """Return the words, their inverse document frequencies and the projection."""
        words = json.dumps(self.vectorizer.get_feature_names_out().tolist()).encode()
        return {
            "words": np.frombuffer(words, dtype=np.uint8),
            "idf": self.vectorizer.idf_,
            "components": self.components,
        }

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Load the state of another embedder."""
        self.vectorizer = _vectorizer(vocabulary=json.loads(state["words"].tobytes()))
        self.vectorizer.idf_ = state["idf"]
        self.components = state["components"]


def _vectorizer(**options: object) -> TfidfVectorizer:
    return TfidfVectorizer(
        preprocessor=_simplify, token_pattern=TERM, sublinear_tf=True, dtype=np.float32, lowercase=False, **options
    )


def _simplify(text: str) -> str:
    return _DIGIT.sub("0", text.lower())
