"""The norm of each row's exact gradient, as a baseline feature for the gradient itself."""

from __future__ import annotations

from torch import nn

from colm.features.exact import exact_piece
from colm.features.factors import GradientPiece, PieceFeatures, renumber
from colm.features.site import ValueSite
from colm.step.pool import Pool


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
