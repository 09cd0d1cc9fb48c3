"""Each row's loss, as a baseline feature for gradients."""

from __future__ import annotations

from torch import nn

from colm.features.capture import run_to_losses, undisturbed
from colm.features.factors import GradientPiece, PieceFeatures, renumber
from colm.features.site import ValueSite
from colm.step.pool import Pool


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
