"""Reduce features with one random sketch for all sources, preserving inner products in expectation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from colm.step.transfer import send

SEED = 20_240_719
"""Seed of the buckets: the same on every rank, in every step, and after resuming."""


class Sketch(NamedTuple):
    """The bucket (out of h) and the sign of each of D coordinates."""

    bucket: Tensor  # (D,) int64
    sign: Tensor  # (D,) float32, 1 or -1
    size: int  # h

    def apply(self, features: Tensor) -> Tensor:
        """Return the sketches of rows (k, D) float32 as (k, h) float32."""
        return features.new_zeros(len(features), self.size).index_add_(1, self.bucket, features * self.sign)


def draw_sketch(dim: int, size: int, device: torch.device) -> Sketch | None:
    """Return a count sketch from `dim` to `size` coordinates, or None if `size` is not smaller.

    Inner products of sketches equal those of the features in expectation, with a variance over the draw of
    at most 2 |x|^2 |y|^2 / size.

    Source: Charikar, Chen and Farach-Colton, 2002; Weinberger et al., 2009.
    """
    if size >= dim:
        return None
    generator = torch.Generator().manual_seed(SEED)
    bucket = torch.randint(size, (dim,), generator=generator)
    sign = torch.randint(2, (dim,), generator=generator).float() * 2 - 1
    return Sketch(send(bucket, device), send(sign, device), size)
