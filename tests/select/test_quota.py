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


def test_largest_remainders_win() -> None:
    assert source_quotas({"a": 50, "b": 29, "c": 21}, 5) == {"a": 3, "b": 1, "c": 1}  # 2.5, 1.45, 1.05
    assert source_quotas({"c": 21, "a": 50, "b": 29}, 5) == {"c": 1, "a": 3, "b": 1}


def test_equal_remainders_win_in_turn_whatever_the_names_and_their_order() -> None:
    names = [f"s{i:02d}" for i in range(40)]
    wins, turns = dict.fromkeys(names, 0), 400
    for turn in range(turns):
        quotas = source_quotas(dict.fromkeys(names, 2), 10, turn)
        assert source_quotas(dict.fromkeys(reversed(names), 2), 10, turn) == quotas
        for name, quota in quotas.items():
            wins[name] += quota
    # Each wins with a chance of 1/4: 100 of 400 turns, with a standard deviation of 8.7.
    assert all(60 < won < 140 for won in wins.values())
    assert sum((won - 100) ** 2 for won in wins.values()) / 75 < 70  # chi-squared of 39 degrees, 99.8 %


def test_a_budget_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"budget=4 is outside \[0, 3\]"):
        source_quotas({"a": 3}, 4)
    with pytest.raises(ConfigError, match="negative"):
        source_quotas({"a": -1}, 0)
