"""Features accessed a few rows, or a few coordinates, at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colm.features import factors
from colm.features.factors import GradientPiece, PieceFeatures, multiply_factors, renumber
from colm.features.spsa import SpsaFeatures


def pool(kind: str, seed: int) -> tuple[PieceFeatures | SpsaFeatures, torch.Tensor]:
    """Return features of 7 rows in two micro-batches, and the equivalent matrix."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "spsa":
        slopes, directions = torch.randn(7, 2, generator=generator), torch.randn(2, 3, 4, generator=generator)
        return SpsaFeatures(slopes, directions), slopes @ directions.flatten(1) / 2
    positions = renumber([[6, 1, 3], [0, 2, 5, 4]])
    pieces, matrix = [], torch.empty(7, 12)
    for held in positions:
        delta, inputs = (torch.randn(len(held), 5, size, generator=generator) for size in (3, 4))
        matrix[torch.tensor(held)] = multiply_factors(delta, inputs)
        whole = GradientPiece(multiply_factors(delta, inputs), None, None)
        pieces.append(whole if kind == "whole" else GradientPiece(None, delta, inputs))
    return PieceFeatures(pieces, positions, 12, torch.device("cpu")), matrix


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(["whole", "factors", "spsa"]),
    st.lists(st.integers(0, 6), max_size=9),
    st.lists(st.integers(0, 11), max_size=13),
    st.integers(0, 99),
)
def test_columns_are_those_of_the_rows(kind: str, rows: list[int], columns: list[int], seed: int) -> None:
    features, matrix = pool(kind, seed)
    index, chosen = torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)
    torch.testing.assert_close(features.rows(index), matrix[index])
    torch.testing.assert_close(features.columns(index, chosen), matrix[index][:, chosen], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("whole", [0, 200])
@pytest.mark.parametrize("size", [1, 2**20])
def test_columns_of_factors_either_way(monkeypatch: pytest.MonkeyPatch, whole: int, size: int) -> None:
    features, matrix = pool("factors", 0)
    monkeypatch.setattr(factors, "WHOLE", whole)
    monkeypatch.setattr(factors, "BLOCK_BYTES_CPU", size)
    rows, columns = torch.tensor([6, 0, 1, 1]), torch.tensor([3, 11, 0])
    torch.testing.assert_close(features.columns(rows, columns), matrix[rows][:, columns])


@pytest.mark.parametrize("kind", ["whole", "factors", "spsa"])
def test_rows_may_be_overwritten(kind: str) -> None:
    features, matrix = pool(kind, 0)
    features.rows(torch.arange(7)).zero_()
    features.columns(torch.arange(7), torch.arange(12)).zero_()
    torch.testing.assert_close(features.rows(torch.arange(7)), matrix)


def test_a_row_whose_square_overflows_is_not_finite() -> None:
    whole = torch.ones(4, 3)
    whole[0, 1], whole[1, 2], whole[2, 0] = torch.nan, -torch.inf, 1e20
    assert GradientPiece(whole, None, None).finite().tolist() == [False, False, False, True]
