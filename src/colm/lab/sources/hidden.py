"""Embeddings from the model to fine-tune: the mean hidden state of one layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from colm.errors import ConfigError
from colm.lab.data.formats import tokenizer_of_format
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.rows import Row
from colm.step.pool import IGNORE

TOKENS = 4096
"""Tokens per forward pass, including padding."""


class HiddenEmbedder:
    """The mean hidden state after one layer over a row's positions.

    Args:
        model: a causal language model.
        tokenizer: the model's tokenizer, fast and with a padding token.
        config: `layer`, and `positions`: those that predict a labeled token, or all.
        max_length: tokens at which rows are truncated.

    Raises:
        ConfigError: the layer does not exist.
    """

    centre = True
    chunk = 2_000

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

    def fit(self, rows: Sequence[Row]) -> None:
        """Do nothing."""

    def state(self) -> dict[str, np.ndarray]:
        """Return an empty state: the settings name the model."""
        return {}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Do nothing."""

    @torch.no_grad()
    def embed(self, rows: Sequence[Row]) -> np.ndarray:
        """Return (len(rows), hidden size) float16, each row scaled to unit length."""
        tokenize = {
            name: tokenizer_of_format(name, self.tokenizer, self.max_length) for name in {row.format for row in rows}
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
