"""Baseline features to compare gradients with: hidden states, losses, and the norms of gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from colm.features.capture import read_hidden, run_to_losses, undisturbed
from colm.features.exact import exact_piece
from colm.features.factors import GradientPiece, PieceFeatures, renumber
from colm.features.head import hidden_size
from colm.features.site import ValueSite, unwrap
from colm.step.pool import Pool


def mean_hidden_features(
    model: nn.Module, site: ValueSite, pool: Pool, groups: list[list[int]], *, head_chunk_tokens: int | None = None
) -> PieceFeatures:
    """Return the output head's input, averaged over each row's attended tokens, (n, d).

    Args:
        model: see `value_gradients`.
        site: unused; part of the signature that all features share.
        pool: the rows.
        groups: row positions of each micro-batch; features are numbered by position.
        head_chunk_tokens: unused, like `site`.

    Raises:
        UnsupportedModelError: the model has no output head that reads one state per token.
    """
    return _hidden_features(model, pool, groups, last=False)


def last_hidden_features(
    model: nn.Module, site: ValueSite, pool: Pool, groups: list[list[int]], *, head_chunk_tokens: int | None = None
) -> PieceFeatures:
    """Return the output head's input at each row's last attended token, (n, d); see `mean_hidden_features`."""
    return _hidden_features(model, pool, groups, last=True)


def loss_features(
    model: nn.Module, site: ValueSite, pool: Pool, groups: list[list[int]], *, head_chunk_tokens: int | None = None
) -> PieceFeatures:
    """Return each row's mean loss over its labeled tokens, (n, 1), with dropout off.

    Args: see `exact_features`.
    """
    pieces = []
    for group in groups:
        with undisturbed(model):
            captured = run_to_losses(
                model, site, pool.collate(group, side="right"), head_chunk_tokens=head_chunk_tokens
            )
        pieces.append(GradientPiece(captured.losses.float()[:, None], None, None))
    return PieceFeatures(pieces, renumber(groups), 1, pieces[0].device if pieces else pool.device)


def gradient_norm_features(
    model: nn.Module, site: ValueSite, pool: Pool, groups: list[list[int]], *, head_chunk_tokens: int | None = None
) -> PieceFeatures:
    """Return the l2 norm of each row's gradient of the last value projection, (n, 1).

    Args: see `exact_features`.
    """
    pieces = []
    for group in groups:
        norms = exact_piece(model, site, pool, group, head_chunk_tokens=head_chunk_tokens).norms()
        pieces.append(GradientPiece(norms[:, None], None, None))
    return PieceFeatures(pieces, renumber(groups), 1, pieces[0].device if pieces else pool.device)


def _hidden_features(model: nn.Module, pool: Pool, groups: list[list[int]], *, last: bool) -> PieceFeatures:
    pieces = []
    for group in groups:
        batch = pool.collate(group, side="right")
        with undisturbed(model):
            hidden = read_hidden(model, batch)
        used = batch["attention_mask"] != 0 if "attention_mask" in batch else torch.ones_like(batch["input_ids"]) > 0
        used = used.to(hidden.device)
        pieces.append(GradientPiece(_last(hidden, used) if last else _mean(hidden, used), None, None))
    device = pieces[0].device if pieces else pool.device
    size = pieces[0].dim if pieces else hidden_size(unwrap(model))
    return PieceFeatures(pieces, renumber(groups), size, device)


def _mean(hidden: Tensor, used: Tensor) -> Tensor:
    """Average (n, T, d) over the used tokens (n, T), in float32."""
    weight = used.float() / used.sum(1, keepdim=True).clamp_min(1)
    return (weight[..., None] * hidden.float()).sum(1)


def _last(hidden: Tensor, used: Tensor) -> Tensor:
    """Return the state at each row's last used token, (n, d) float32."""
    column = torch.arange(used.shape[1], device=used.device)
    at = torch.where(used, column, 0).amax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), at].float()
