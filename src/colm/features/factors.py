"""Features as matrices, or as the two factors of each example's gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

COLUMN_BYTES = 2**26
"""Largest (rows, T, h) float32 block of products that is made at a time, unless one row alone is larger."""


class GradientPiece(NamedTuple):
    """Per-example weight gradients of one micro-batch, whole or as factors.

    The gradient of a linear map's weight is sum_t delta_t x_t^T. The factors take T (d_out + d_in)
    numbers a row, the matrix d_out d_in: whichever is smaller is kept.
    """

    whole: Tensor | None  # (n, D) float32
    delta: Tensor | None  # (n, T, d_out), gradient at the map's output
    inputs: Tensor | None  # (n, T, d_in)

    @property
    def device(self) -> torch.device:
        """Where the gradients are."""
        held = self.whole if self.whole is not None else self.delta
        assert held is not None
        return held.device

    @property
    def dim(self) -> int:
        """D, the entries of one gradient."""
        if self.whole is not None:
            return self.whole.shape[1]
        assert self.delta is not None
        assert self.inputs is not None
        return self.delta.shape[-1] * self.inputs.shape[-1]

    def rows(self, index: Tensor) -> Tensor:
        """Return the gradients of rows `index` (k,) as (k, D) float32."""
        if self.whole is not None:
            return self.whole[index]
        assert self.delta is not None
        assert self.inputs is not None
        return multiply_factors(self.delta[index], self.inputs[index])

    def columns(self, index: Tensor, columns: Tensor) -> Tensor:
        """Return the gradients of rows `index` (k,) at the coordinates `columns` (h,), as (k, h) float32.

        From factors that takes T h products a row, not the T D of the whole gradient.
        """
        if self.whole is not None:
            return self.whole[index[:, None], columns]
        assert self.delta is not None
        assert self.inputs is not None
        at_output, at_input = columns // self.inputs.shape[-1], columns % self.inputs.shape[-1]
        run = max(1, COLUMN_BYTES // (4 * self.inputs.shape[1] * max(1, len(columns))))
        parts = [
            (self.delta[rows][..., at_output].float() * self.inputs[rows][..., at_input].float()).sum(1)
            for rows in torch.split(index, run)
        ]
        return torch.cat(parts)

    def finite(self) -> Tensor:
        """Return which rows can be squared and stay finite, (n,) bool."""
        if self.whole is not None:
            # The largest magnitude is found without a copy; a NaN is below nothing.
            return torch.linalg.vector_norm(self.whole, torch.inf, dim=1) < torch.finfo(self.whole.dtype).max ** 0.5
        assert self.delta is not None
        assert self.inputs is not None
        return torch.isfinite(self.delta).flatten(1).all(1) & torch.isfinite(self.inputs).flatten(1).all(1)

    def norms(self) -> Tensor:
        """Return the l2 norm of each row's gradient, (n,) float32, without making the matrix from its factors.

        The squared norm of sum_t delta_t x_t^T is sum_ts (delta_t . delta_s) (x_t . x_s).
        """
        if self.whole is not None:
            return self.whole.square().sum(1).sqrt()
        assert self.delta is not None
        assert self.inputs is not None
        delta, inputs = self.delta.float(), self.inputs.float()
        with _in_float32(delta):
            products = (delta @ delta.mT) * (inputs @ inputs.mT)  # (n, T, T)
        return products.sum((1, 2)).clamp_min(0).sqrt()


def multiply_factors(delta: Tensor, inputs: Tensor) -> Tensor:
    """Return sum_t delta_t x_t^T of each row: (n, T, d_out), (n, T, d_in) -> (n, d_out * d_in) float32."""
    with _in_float32(delta):
        return torch.einsum("nto,nti->noi", delta.float(), inputs.float()).flatten(1)


def _in_float32(tensor: Tensor) -> torch.autocast:
    """Keep products of float32 as they are, also where the caller's own loop has autocast on."""
    return torch.autocast(tensor.device.type, enabled=False)


def gradient_piece(delta: Tensor, inputs: Tensor) -> GradientPiece:
    """Keep one micro-batch's gradients in the smaller of the two forms."""
    tokens, d_out = delta.shape[1:]
    d_in = inputs.shape[2]
    if d_out * d_in <= tokens * (d_out + d_in):
        return GradientPiece(multiply_factors(delta, inputs), None, None)
    return GradientPiece(None, delta, inputs)


def renumber(groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Number the rows of all groups 0 .. n - 1 in the order of their positions in the pool.

    >>> renumber([[7, 2], [4]])
    [[2, 0], [1]]
    """
    number = {position: index for index, position in enumerate(sorted(p for group in groups for p in group))}
    return [[number[position] for position in group] for group in groups]


class PieceFeatures:
    """Features of a pool, put together from micro-batches in any order.

    Args:
        pieces: one for each micro-batch of the pass.
        positions: the row positions that each piece holds, together 0 .. n - 1 once each.
        dim: D.
        device: where the rows are to be had.
    """

    def __init__(
        self,
        pieces: Sequence[GradientPiece],
        positions: Sequence[Sequence[int]],
        dim: int,
        device: torch.device,
    ) -> None:
        self._pieces = list(pieces)
        self._positions = list(positions)
        self._where = {
            position: (number, row) for number, held in enumerate(positions) for row, position in enumerate(held)
        }
        self._dim = dim
        self._device = device

    @property
    def dim(self) -> int:
        """D, the number of coordinates of one example."""
        return self._dim

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._device

    def __len__(self) -> int:
        return len(self._where)

    def finite(self) -> Tensor:
        """Return which rows are finite, (n,) bool."""
        out = torch.ones(len(self), dtype=torch.bool, device=self._device)
        for piece, held in zip(self._pieces, self._positions, strict=True):
            out[torch.tensor(held, device=self._device)] = piece.finite()
        return out

    def rows(self, indices: Tensor) -> Tensor:
        """Return the rows `indices` (k,) int64 as (k, D) float32."""
        return self._gather(indices, self._dim, lambda piece, index: piece.rows(index))

    def columns(self, indices: Tensor, columns: Tensor) -> Tensor:
        """Return the rows `indices` (k,) int64 at the coordinates `columns` (h,) int64, as (k, h) float32."""
        return self._gather(indices, len(columns), lambda piece, index: piece.columns(index, columns))

    def _gather(self, indices: Tensor, width: int, read: Callable[[GradientPiece, Tensor], Tensor]) -> Tensor:
        by_piece: dict[int, tuple[list[int], list[int]]] = {}
        for target, position in enumerate(indices.tolist()):
            number, row = self._where[position]
            targets, rows = by_piece.setdefault(number, ([], []))
            targets.append(target)
            rows.append(row)
        if len(by_piece) == 1:  # as good as always where a chunk is a few rows; spares a copy
            ((number, (_, rows)),) = by_piece.items()
            return read(self._pieces[number], torch.tensor(rows, device=self._device))
        out = torch.empty(len(indices), width, device=self._device)
        for number, (targets, rows) in by_piece.items():
            index = torch.tensor(rows, device=self._device)
            out[torch.tensor(targets, device=self._device)] = read(self._pieces[number], index)
        return out
