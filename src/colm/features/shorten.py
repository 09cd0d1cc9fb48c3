"""Shorten features to h coordinates: those that represent a source, or a random sketch of all of them."""

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


def largest_coordinates(mean: Tensor, count: int) -> Tensor:
    """Return the `count` largest-magnitude coordinates of a source's mean feature, ascending.

    Magnitudes are compared to five digits of the largest, and the lower coordinate wins ties. At the
    first step every entry of an Adam step has magnitude 1, so the means take few distinct values and
    floating-point noise would otherwise decide.

    Args:
        mean: (D,) mean over the source's pool rows. The mean of magnitudes would not work: at the
            first step it is 1 everywhere.
        count: h; values above D select all coordinates.

    Returns:
        (min(count, D),) int64.

    Source: CoLM, section 4.3, "sparsifying": the largest magnitude of the mean normalized gradient.

    >>> largest_coordinates(torch.tensor([0.1, -3.0, 2.0, 0.0]), 2).tolist()
    [1, 2]
    """
    if count >= mean.shape[0]:
        return torch.arange(mean.shape[0], device=mean.device)
    magnitude = mean.abs()
    largest = magnitude.max().clamp_min(torch.finfo(magnitude.dtype).tiny)
    rounded = (magnitude / largest * 1e5).round().to(torch.int32)
    order = torch.sort(rounded, descending=True, stable=True).indices
    return order[:count].sort().values
