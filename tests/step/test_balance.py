"""Runs with the fewest padded tokens, and ranks with about as many tokens each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colm.step import balance
from colm.step.balance import deal_rows, split_evenly, split_joined, split_padded

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=9).map(lambda lengths: sorted(lengths, reverse=True))


def tokens(runs: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[int]:
    return [len(run) * max((lengths[p] for p in run), default=0) for run in runs]


def best_of_all(lengths: list[int], labelled: list[int], slots: int) -> int:
    """Try every way to cut the rows."""
    rows = range(len(lengths))

    def memory(runs: list[range]) -> list[int]:
        held = [sum(labelled[p] for p in run) for run in runs]
        return [sum(pair) for pair in zip(held, tokens(runs, lengths), strict=True)]

    even = [range(run[0], run[-1] + 1) for run in split_evenly(rows, slots)]
    limits = max(tokens(even, lengths)), max(memory(even))
    found = []
    for inner in combinations(rows[1:], slots - 1):
        runs = [range(a, b) for a, b in zip((0, *inner), (*inner, len(lengths)), strict=True)]
        if max(tokens(runs, lengths)) <= limits[0] and max(memory(runs)) <= limits[1]:
            found.append(sum(tokens(runs, lengths)))
    return min(found)


@given(LENGTHS, st.integers(1, 5), st.data())
def test_no_other_cut_has_fewer_padded_tokens(lengths: list[int], slots: int, data: st.DataObject) -> None:
    labelled = [data.draw(st.integers(0, length)) for length in lengths]
    runs = split_padded(range(len(lengths)), slots, lengths, labelled)
    assert [p for run in runs for p in run] == list(range(len(lengths)))
    assert len(runs) == slots
    if len(lengths) < slots:
        assert runs == split_evenly(range(len(lengths)), slots)
        return
    assert all(runs)
    assert sum(tokens(runs, lengths)) == best_of_all(lengths, labelled, slots)


def test_many_rows_are_cut_at_fewer_places(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [100] * 5 + [90, 80, 70, 60, 50, 40, 30] + [10] * 20
    rows, labelled = range(len(lengths)), [1] * len(lengths)
    exact = sum(tokens(split_padded(rows, 4, lengths, labelled), lengths))
    monkeypatch.setattr(balance, "MOST_CUTS", 8)
    rough = sum(tokens(split_padded(rows, 4, lengths, labelled), lengths))
    assert exact <= rough < sum(tokens(split_evenly(rows, 4), lengths))


@given(LENGTHS, st.integers(1, 5))
def test_joined_rows_need_no_more_tokens_than_padded_ones(lengths: list[int], slots: int) -> None:
    rows = range(len(lengths))
    runs = split_joined(rows, slots, lengths)
    loads = [sum(lengths[p] for p in run) for run in runs]
    assert sorted(p for run in runs for p in run) == list(rows)
    assert sum(map(bool, runs)) == min(slots, len(lengths))
    assert loads == sorted(loads, reverse=True)
    assert loads[0] <= max(tokens(split_evenly(rows, slots), lengths))
    assert loads[0] - loads[-1] <= lengths[0]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(1, 8))
def test_ranks_have_as_many_rows_and_no_slower_rank_than_before(lengths: list[int], ranks: int) -> None:
    kept = list(range(0, len(lengths), 2))
    dealt, before = deal_rows(kept, ranks, lengths), split_evenly(kept, ranks)
    assert sorted(p for run in dealt for p in run) == kept
    assert [len(run) for run in dealt] == [len(run) for run in before]
    assert all(run == sorted(run) for run in dealt)
    loads, old = ([sum(lengths[p] for p in run) for run in each] for each in (dealt, before))
    assert max(loads) <= max(old)
    # Each swap moves two rows, and the slowest rank is one of the two.
    assert sum(set(run) != set(was) for run, was in zip(dealt, before, strict=True)) != 1


def test_equal_ranks_stay_as_they_are() -> None:
    assert deal_rows(range(8), 2, [5, 6, 5, 6] * 2) == split_evenly(range(8), 2)
