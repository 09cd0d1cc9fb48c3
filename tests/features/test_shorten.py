from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from colm.features.shorten import Sketch, draw_sketch, largest_coordinates


def as_matrix(sketch: Sketch) -> torch.Tensor:
    """Return the same map as a matrix (D, h): obviously correct, but large."""
    matrix = torch.zeros(len(sketch.bucket), sketch.size)
    for coordinate, (bucket, sign) in enumerate(zip(sketch.bucket.tolist(), sketch.sign.tolist(), strict=True)):
        matrix[coordinate, bucket] = sign
    return matrix


@given(st.integers(2, 60), st.integers(1, 59), st.integers(0, 5))
def test_it_is_the_matrix_of_signs(dim: int, size: int, rows: int) -> None:
    sketch = draw_sketch(dim, size, torch.device("cpu"))
    if size >= dim:
        assert sketch is None
        return
    assert sketch is not None
    features = torch.randn(rows, dim, generator=torch.Generator().manual_seed(dim))
    torch.testing.assert_close(sketch.apply(features), features @ as_matrix(sketch))


def test_inner_products_stay() -> None:
    sketch = draw_sketch(20_000, 2_000, torch.device("cpu"))
    assert sketch is not None
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20, 20_000, generator=generator) + torch.randn(20_000, generator=generator)
    exact, found = features @ features.T, sketch.apply(features) @ sketch.apply(features).T
    sizes = features.norm(dim=1)
    error = (found - exact) / (sizes[:, None] * sizes)
    assert float(error.abs().max()) < 5 * (2 / 2_000) ** 0.5


def test_every_process_draws_the_same() -> None:
    torch.manual_seed(1)
    first = draw_sketch(100, 10, torch.device("cpu"))
    torch.manual_seed(2)
    second = draw_sketch(100, 10, torch.device("cpu"))
    assert first is not None
    assert second is not None
    assert torch.equal(first.bucket, second.bucket)
    assert torch.equal(first.sign, second.sign)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=30), st.integers(1, 40))
def test_takes_the_largest_and_the_lower_of_ties(values: list[int], count: int) -> None:
    found = largest_coordinates(torch.tensor(values, dtype=torch.float32), count).tolist()
    expected = sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:count])
    assert found == expected


def test_float_noise_does_not_decide() -> None:
    mean = torch.ones(100)
    noisy = mean + 1e-7 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert largest_coordinates(noisy, 10).tolist() == list(range(10))
