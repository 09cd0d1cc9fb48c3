"""Bytes over the network: rows that change rank against dealing them, and the formulas against a sum of collectives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colm.lab.plan.sharding import Sharding
from colm.lab.plan.traffic import Model, Selection, count_traffic, expected_moves
from colm.step.balance import deal_rows

MODEL = Model(weights=1000, layers=600, trained=800)
SELECTION = Selection(rows=64, kept=32, tokens=10, sources=3, coordinates=20, dim=50, forwards=2)


@pytest.mark.parametrize(("gpus", "rows", "kept"), [(2, 64, 32), (8, 64, 16), (4, 40, 30)])
def test_rows_that_change_rank(gpus: int, rows: int, kept: int) -> None:
    draw = np.random.default_rng(0)
    moved = []
    for _ in range(200):
        chosen = sorted(draw.choice(rows, kept, replace=False).tolist())
        runs = deal_rows(chosen, gpus, [7] * rows)
        moved.append(sum(p * gpus // rows != rank for rank, run in enumerate(runs) for p in run))
    assert expected_moves(rows, kept, gpus) == pytest.approx(np.mean(moved), rel=0.2)


@given(st.integers(2, 500), st.integers(1, 64))
def test_nothing_moves_where_all_or_no_rows_are_kept(rows: int, gpus: int) -> None:
    assert expected_moves(rows, rows, gpus) == expected_moves(rows, 0, gpus) == 0


def ring(size: float, gpus: int) -> float:
    """Return what each GPU sends of `size` bytes in a ring: its part, then each part that arrives but the last."""
    return sum(size / gpus for _ in range(gpus - 1))


def test_the_engine() -> None:
    def sent(engine: str, gpus: int = 4, **options: bool) -> tuple[int, int]:
        found = count_traffic(Sharding(engine, gpus, **options), MODEL, SELECTION, 3)
        return found.weights, found.gradients

    assert sent("ddp") == (0, round(2 * ring(800, 4)))
    assert sent("fsdp2") == (round(3 * ring(1600, 4)), round(ring(800, 4)))
    assert sent("fsdp2", deferred=False) == (round(3 * ring(1600, 4)), round(3 * ring(800, 4)))
    assert sent("fsdp2", reshard=False) == (round(3 * ring(1000, 4)), round(ring(800, 4)))
    assert sent("zero1") == (round(ring(800, 4)), round(ring(800, 4)))
    assert sent("zero2") == (round(ring(800, 4)), round(3 * ring(800, 4)))
    assert sent("zero3") == (round(3 * ring(1600, 4)), round(3 * ring(800, 4)))


def test_the_selection() -> None:
    found = count_traffic(Sharding("fsdp2", 4), MODEL, SELECTION, 3)
    assert found.selection_weights == round(2 * ring(1000, 4))
    assert found.features == round(ring(64 * 20 * 4, 4))
    assert found.sums == round(2 * ring(50 * 4, 4) * (3 + 3))  # all-reduces: of each source, and of the picks
    assert found.facts == round(ring(64 * (4 * 8 + 8), 4))
    assert found.selection == sum(found) - found.weights - found.gradients
    whole = count_traffic(Sharding("ddp", 4), MODEL, SELECTION._replace(coordinates=10**6, noise_every=4), 3)
    assert whole.features == round(ring(64 * 50 * 4, 4))
    assert whole.noise == round(ring(32 * 50 * 4, 4) / 4)
    assert whole.selection_weights == 0
    none = count_traffic(Sharding("fsdp2", 4), MODEL, SELECTION._replace(dim=0), 3)
    assert none.selection == none.facts + none.moved
