"""Run the output head separately from the model, so that it can process tokens in chunks.

Float32 logits of a pool's labeled tokens over a vocabulary of 128,000, with their gradient, take
tens of gigabytes; a chunk does not. One table lists what models do to their logits after the head,
and the result is checked once against the model's own logits. On a mismatch, the head runs unchunked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from colm.errors import UnsupportedModelError
from colm.losses import count_by_row, token_losses
from colm.step.sharding import is_sharded, whole_shape

CHUNK_BYTES = 2**28
"""Bytes of float32 logits per chunk if the user sets no number of tokens."""

FINISHES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logit_scale": lambda logits, scale: logits * scale,  # Cohere
    "logits_scaling": lambda logits, divisor: logits / divisor,  # Granite
    "lm_head_multiplier": lambda logits, scale: logits * scale,  # Falcon-H1
    "final_logit_softcapping": lambda logits, cap: torch.tanh(logits / cap) * cap,  # Gemma
    "logits_soft_cap": lambda logits, cap: torch.tanh(logits / cap) * cap,  # RecurrentGemma
}
"""What each setting in a model's config does to the logits."""

NO_HIDDEN_STATES = (
    "The model has no output head that reads one hidden state per token, so hidden states cannot serve as features. "
    "Use features='exact'."
)


class OutputHead(NamedTuple):
    """The head and the operations after it, verified to reproduce the model's logits."""

    module: nn.Module
    vocabulary: int
    finishes: tuple[tuple[str, float], ...]  # keys of FINISHES with the config's values, in order

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states (M, d): (M, V)."""
        logits: Tensor = self.module(hidden)
        for name, number in self.finishes:
            logits = FINISHES[name](logits, number)
        return logits

    def chunk_tokens(self, wanted: int | None) -> int:
        """Return how many tokens go through the head at a time."""
        return wanted or max(1, CHUNK_BYTES // (4 * self.vocabulary))


def output_module(model: Any) -> nn.Module | None:
    """Return the model's output embeddings module, or None."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return head if isinstance(head, nn.Module) else None


def hidden_size(model: Any) -> int:
    """Return d, the size of the hidden states that the head reads; works on a rank without rows.

    Raises:
        UnsupportedModelError: the model has no output head with a weight.
    """
    weight = getattr(output_module(model), "weight", None)
    if not isinstance(weight, Tensor) or len(whole_shape(weight)) != 2:
        raise UnsupportedModelError(NO_HIDDEN_STATES)
    return whole_shape(weight)[-1]


def match_head(model: Any, hidden: Tensor, logits: Tensor) -> OutputHead | None:
    """Return the head if it reproduces the model's `logits` (1, V) from its input `hidden` (1, d); else None.

    A head whose weight is split over ranks now is not used: it may be unavailable outside the model's forward, and
    gathering it for each chunk would require the same number of chunks on all ranks.
    """
    module = output_module(model)
    if module is None or is_sharded(module):
        return None
    config = model.config.get_text_config() if hasattr(model, "config") else None
    finishes = tuple(
        (name, float(number))
        for name in FINISHES
        if isinstance(number := getattr(config, name, None), int | float) and not isinstance(number, bool)
    )
    head = OutputHead(module, logits.shape[-1], finishes)
    found = head.logits(hidden)
    if found.shape != logits.shape:
        return None
    # Rounding alone makes small differences; a missing scale or cap makes much larger ones.
    tolerance = 1e-5 if logits.dtype == found.dtype == torch.float32 else 2e-2
    difference = (found.float() - logits.float()).abs().max()
    return head if bool(difference <= tolerance * logits.float().abs().max().clamp_min(1e-6)) else None


def chunked_losses(
    head: OutputHead, hidden: Tensor, targets: Tensor, row: Tensor, rows: int, chunk: int, scale: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return each row's mean loss and, given a `scale`, the gradient of scale * sum of losses at `hidden` (M, d)."""
    weight = 1.0 / count_by_row(row, rows)[row]
    losses = torch.zeros(rows, device=hidden.device)
    gradients = []
    parts = (torch.split(tensor, chunk) for tensor in (hidden.detach(), targets, row, weight))
    for states, wanted, owner, share in zip(*parts, strict=True):
        states = states.requires_grad_(scale is not None)
        shares = token_losses(head.logits(states), wanted) * share
        losses = losses.to(shares.dtype).index_add(0, owner, shares.detach())
        if scale is not None:
            gradients.append(torch.autograd.grad(shares.sum() * scale, states)[0])
    if scale is None:
        return losses, None
    return losses, torch.cat(gradients) if gradients else torch.zeros_like(hidden)
