"""Choose the coordinates that represent a source."""

from __future__ import annotations

import torch
from torch import Tensor


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
