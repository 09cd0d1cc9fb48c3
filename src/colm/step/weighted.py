"""Carry a row's weight in the loss through a data loader, along with the row's number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import Dataset

from colm.step.exchange import WEIGHT_KEY


class WeightedIndex(int):
    """A row number that also has the row's weight in the loss; an int in every other respect."""

    weight: float

    def __new__(cls, index: int, weight: float) -> WeightedIndex:  # noqa: D102
        made = super().__new__(cls, index)
        made.weight = weight
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return WeightedIndex, (int(self), self.weight)


class RowsWithWeights(Dataset[dict[str, Any]]):
    """A data set whose rows also carry the weight of the index by which they are fetched."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: WeightedIndex) -> dict[str, Any]:
        return {**self._rows[int(index)], WEIGHT_KEY: index.weight}

    def __getitems__(self, indices: list[WeightedIndex]) -> list[dict[str, Any]]:
        """Return a batch's rows, fetched together if the data set supports it."""
        plain = [int(index) for index in indices]
        fetch = getattr(self._rows, "__getitems__", None)
        rows = fetch(plain) if fetch else [self._rows[index] for index in plain]
        return [{**row, WEIGHT_KEY: index.weight} for row, index in zip(rows, indices, strict=True)]


def collate_with_weights(
    collate: Callable[[list[Any]], Mapping[str, Any]], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Collate rows without their weights, then add those to the batch, (n,) float32."""
    weights = torch.tensor([row[WEIGHT_KEY] for row in rows], dtype=torch.float32)
    plain = [{key: value for key, value in row.items() if key != WEIGHT_KEY} for row in rows]
    return {**collate(plain), WEIGHT_KEY: weights}
