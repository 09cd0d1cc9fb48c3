"""The interval of benchmarks/noise.py, against a plain standard error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import noise

from colm.noise import noise_terms


def test_the_interval_of_a_mean_is_its_standard_error() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    without = [float((values.sum() - value) / 29) for value in values]
    mean, half = noise.with_interval(without, float(values.mean()))
    assert mean == float(values.mean())
    assert half == pytest.approx(1.96 * float(values.std()) / 30**0.5)


def test_pools_add_up() -> None:
    rows = torch.randn(3 * noise.POOL, 6, generator=torch.Generator().manual_seed(1)).double() + 0.5
    found = noise.pools_of(rows @ rows.T)
    parts = [noise_terms(part @ part.T) for part in rows.split(noise.POOL)]
    assert noise.ratio(found) == pytest.approx(sum(part.spread for part in parts) / sum(part.shared for part in parts))
