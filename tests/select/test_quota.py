from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colm.errors import ConfigError
from colm.select.quota import source_quotas

COUNTS = st.lists(st.integers(0, 60), max_size=8)


@given(COUNTS, st.data())
def test_sums_to_the_budget_within_counts_and_within_one_of_the_share(counts: list[int], data: st.DataObject) -> None:
    named = {f"s{i}": count for i, count in enumerate(counts)}
    total = sum(counts)
    budget = data.draw(st.integers(0, total))
    quotas = source_quotas(named, budget)
    assert sum(quotas.values()) == budget
    assert list(quotas) == list(named)
    for name, quota in quotas.items():
        assert 0 <= quota <= named[name]
        assert abs(quota - Fraction(budget * named[name], total or 1)) < 1


def test_largest_remainders_win_and_the_first_of_equal_ones() -> None:
    assert source_quotas({"a": 5, "b": 3, "c": 2}, 5) == {"a": 3, "b": 1, "c": 1}  # 2.5, 1.5, 1.0
    assert source_quotas({"b": 3, "a": 5, "c": 2}, 5) == {"b": 2, "a": 2, "c": 1}


def test_a_budget_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"budget=4 is outside \[0, 3\]"):
        source_quotas({"a": 3}, 4)
    with pytest.raises(ConfigError, match="negative"):
        source_quotas({"a": -1}, 0)
