"""Features as matrices, or as the two factors of each example's gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from colm.step.transfer import row_numbers

BLOCK_BYTES = 2**26
"""Largest float32 block allocated at a time, unless a single row is larger."""

BLOCK_BYTES_CPU = 2**20
"""The same limit on a CPU, where a block that stays in cache through all passes is several times faster."""

SMALL_BYTES = 2**24
"""Micro-batch gradients up to this size are stored whole even if their factors are smaller, to multiply only once."""

WHOLE = 200
"""D / h up to which multiplying all factors and picking columns is faster than gathering the columns' factors."""


def blocks(rows: Tensor, width: int, device: torch.device) -> Iterator[Tensor]:
    """Split row numbers (n,) into runs whose (rows, width) float32 block fits the device's block size."""
    most = BLOCK_BYTES_CPU if device.type == "cpu" else BLOCK_BYTES
    if len(rows):
        yield from torch.split(rows, max(1, most // (4 * max(1, width))))


class GradientPiece(NamedTuple):
    """Per-example weight gradients of one micro-batch, whole or as factors.

    The gradient of a linear map's weight is sum_t delta_t x_t^T. The factors take T (d_out + d_in)
    numbers per row, the matrix d_out d_in; `gradient_piece` decides which form is kept.
    """

    whole: Tensor | None  # (n, D) float32
    delta: Tensor | None  # (n, T, d_out), gradient at the map's output
    inputs: Tensor | None  # (n, T, d_in)

    @property
    def device(self) -> torch.device:
        """Device that holds the gradients."""
        held = self.whole if self.whole is not None else self.delta
        assert held is not None
        return held.device

    @property
    def dim(self) -> int:
        """D, the number of entries of one gradient."""
        if self.whole is not None:
            return self.whole.shape[1]
        assert self.delta is not None
        assert self.inputs is not None
        return self.delta.shape[-1] * self.inputs.shape[-1]

    def rows(self, index: Tensor) -> Tensor:
        """Return the gradients of rows `index` (k,) as (k, D) float32."""
        if self.whole is not None:
            return self.whole.index_select(0, index)  # five times faster than indexing on a CPU
        assert self.delta is not None
        assert self.inputs is not None
        return multiply_factors(self.delta.index_select(0, index), self.inputs.index_select(0, index))

    def columns(self, index: Tensor, columns: Tensor) -> Tensor:
        """Return the gradients of rows `index` (k,) at the coordinates `columns` (h,), as (k, h) float32.

        If D is large, factors are multiplied only at these coordinates.
        """
        if self.whole is not None:
            return self.whole.index_select(1, columns).index_select(0, index)
        assert self.delta is not None
        assert self.inputs is not None
        width, (tokens, d_in) = len(columns), self.inputs.shape[1:]
        if self.dim <= WHOLE * width:
            parts = [self.rows(rows).index_select(1, columns) for rows in blocks(index, self.dim, self.device)]
        else:
            parts = [
                (_take(self.delta, rows, columns // d_in) * _take(self.inputs, rows, columns % d_in)).sum(1)
                for rows in blocks(index, tokens * width, self.device)
            ]
        return torch.cat(parts) if parts else self.delta.new_zeros(0, width, dtype=torch.float32)

    def finite(self) -> Tensor:
        """Return which rows remain finite when squared, (n,) bool."""
        if self.whole is not None:
            return torch.isfinite(torch.linalg.vector_norm(self.whole, dim=1))  # sums squares, without a copy
        assert self.delta is not None
        assert self.inputs is not None
        return torch.isfinite(self.delta).flatten(1).all(1) & torch.isfinite(self.inputs).flatten(1).all(1)

    def norms(self) -> Tensor:
        """Return the l2 norm of each row's gradient, (n,) float32, without forming the matrix from its factors.

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


def _take(factor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return factor.index_select(0, rows).index_select(2, columns).float()


def multiply_factors(delta: Tensor, inputs: Tensor) -> Tensor:
    """Return sum_t delta_t x_t^T of each row: (n, T, d_out), (n, T, d_in) -> (n, d_out * d_in) float32."""
    with _in_float32(delta):
        return torch.einsum("nto,nti->noi", delta.float(), inputs.float()).flatten(1)


def _in_float32(tensor: Tensor) -> torch.autocast:
    """Keep float32 products in float32, even if the caller's loop enables autocast."""
    return torch.autocast(tensor.device.type, enabled=False)


def gradient_piece(delta: Tensor, inputs: Tensor) -> GradientPiece:
    """Store one micro-batch's gradients in the smaller form, or whole if they are small."""
    rows, tokens, d_out = delta.shape
    d_in = inputs.shape[2]
    if d_out * d_in <= tokens * (d_out + d_in) or 4 * rows * d_out * d_in <= SMALL_BYTES:
        return GradientPiece(multiply_factors(delta, inputs), None, None)
    return GradientPiece(None, delta, inputs)


def renumber(groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Number the rows of all groups 0 .. n - 1 by their positions in the pool.

    >>> renumber([[7, 2], [4]])
    [[2, 0], [1]]
    """
    number = {position: index for index, position in enumerate(sorted(p for group in groups for p in group))}
    return [[number[position] for position in group] for group in groups]


class PieceFeatures:
    """Features of a pool, assembled from micro-batches in any order.

    Args:
        pieces: one per micro-batch of the pass.
        positions: row positions held by each piece; together they cover 0 .. n - 1 exactly once.
        dim: D.
        device: device of the returned rows.
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
        """D, the number of coordinates per example."""
        return self._dim

    @property
    def device(self) -> torch.device:
        """Device that holds the rows."""
        return self._device

    def __len__(self) -> int:
        return len(self._where)

    def finite(self) -> Tensor:
        """Return which rows are finite, (n,) bool."""
        out = torch.ones(len(self), dtype=torch.bool, device=self._device)
        for piece, held in zip(self._pieces, self._positions, strict=True):
            out[row_numbers(held, self._device)] = piece.finite()
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
        if len(by_piece) == 1:  # nearly always, if a chunk is a few rows; avoids a copy
            ((number, (_, rows)),) = by_piece.items()
            return read(self._pieces[number], row_numbers(rows, self._device))
        out = torch.empty(len(indices), width, device=self._device)
        for number, (targets, rows) in by_piece.items():
            index = row_numbers(rows, self._device)
            out[row_numbers(targets, self._device)] = read(self._pieces[number], index)
        return out
