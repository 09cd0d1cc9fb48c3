"""The statistics of benchmarks/fidelity, against slow and plain ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "fidelity"))
import study


@pytest.fixture
def pool() -> dict[str, Any]:
    gradients = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)).double() + 0.3
    return {"gradients": gradients, "products": gradients @ gradients.T}


def test_the_judge_sees_only_inner_products_and_is_right(pool: dict[str, Any]) -> None:
    picks = [1, 4, 9]
    kept, whole = pool["gradients"][picks].mean(0), pool["gradients"].mean(0)
    cosine, error = study.judge(pool, picks)
    assert cosine == pytest.approx(float(torch.cosine_similarity(kept, whole, dim=0)))
    assert error == pytest.approx(float((kept - whole).norm() / whole.norm()))


def test_random_curve_ends_at_the_pool_and_its_points_are_means_over_subsets(pool: dict[str, Any]) -> None:
    curve = study.random_curve(pool)
    assert curve[-1] == pytest.approx(1.0)
    alone = torch.tensor([study.judge(pool, [row])[0] for row in range(12)])
    assert curve[0] == pytest.approx(float(alone.mean()), abs=4 * float(alone.std()) / study.RANDOM_DRAWS**0.5)


def test_effective_rows_inverts_the_curve() -> None:
    curve = torch.tensor([0.2, 0.4, 0.8, 1.0])
    for cosine, rows in ((0.1, 1.0), (0.4, 2.0), (0.6, 2.5), (0.9, 3.5), (1.1, 4.0)):
        assert float(study.effective_rows(torch.tensor(cosine), curve)) == pytest.approx(rows)


def test_greedy_on_cosine_takes_the_best_next_row(pool: dict[str, Any]) -> None:
    picks: list[int] = []
    for _ in range(6):
        left = [row for row in range(12) if row not in picks]
        picks.append(max(left, key=lambda row: study.judge(pool, [*picks, row])[0]))
    assert study.greedy_on_cosine(pool) == picks


def test_the_interval_covers_the_spread_of_pools_and_of_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    by_pool, by_draw = torch.randn(40, 1, generator=generator), torch.randn(1, 10, generator=generator)
    for values, count in ((by_pool.expand(40, 10), 40), (by_draw.expand(40, 10), 10)):
        mean, low, high = study.interval(values)
        assert mean == pytest.approx(float(values.mean()), abs=1e-6)
        assert (high - low) / 2 == pytest.approx(1.96 * float(values.std()) / count**0.5, rel=0.15)
