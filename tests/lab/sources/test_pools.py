"""The expected pool and coreset, against enumeration and against the selector itself."""

from __future__ import annotations

import itertools
import random
from math import comb, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.models import ragged_batch, tiny_model

from colm import ConfigError, CoresetSelector, DataError, SelectionConfig
from colm.lab.sources.pools import even_share, expect_pool
from colm.select.quota import source_quotas
from colm.step.sources import find_small_sources


def enumerate_pools(sizes: dict[str, int], pool: int, keep: int) -> tuple[dict[str, float], float]:
    """Return the exact expected coreset and the probability of an overflow, over all possible pools."""
    small = find_small_sources(sizes, "auto")
    expected, overflow = dict.fromkeys(sizes, 0.0), 0.0
    for counts in itertools.product(*(range(min(size, pool) + 1) for size in sizes.values())):
        if sum(counts) != pool:
            continue
        held = dict(zip(sizes, counts, strict=True))
        ways = prod(comb(sizes[name], count) for name, count in held.items())
        chance = ways / comb(sum(sizes.values()), pool)
        of_small = {name: held[name] for name in sizes if name in small and held[name]}
        of_big = {name: held[name] for name in sizes if name not in small and held[name]}
        rows = sum(of_small.values())
        overflow += chance * (rows > keep)
        for turn in range(50):  # ties are broken by the step
            if rows > keep:
                kept = source_quotas(of_small, keep, turn)
            else:
                kept = of_small | source_quotas(of_big, keep - rows, turn)
            for name, count in kept.items():
                expected[name] += chance * count / 50
    return expected, overflow


@pytest.mark.parametrize(
    ("sizes", "pool", "keep"),
    [({"a": 20, "b": 12, "c": 4, "d": 2}, 8, 4), ({"a": 9, "b": 4, "c": 4}, 8, 3), ({"a": 5, "b": 5}, 4, 2)],
)
def test_expectations_are_those_over_all_pools(sizes: dict[str, int], pool: int, keep: int) -> None:
    expected, overflow = enumerate_pools(sizes, pool, keep)
    outlook = expect_pool(sizes, SelectionConfig(keep_count=keep), pool, 1)
    assert outlook.overflow == pytest.approx(overflow)
    for name, source in outlook.sources.items():
        assert source.in_pool == pytest.approx(pool * sizes[name] / sum(sizes.values()))
        assert source.in_coreset == pytest.approx(expected[name], abs=0.08)


def test_the_selector_keeps_what_was_expected() -> None:
    sizes = {"a": 60, "b": 30, "c": 8, "d": 2}
    config = SelectionConfig(keep=0.5, features="none")
    selector = CoresetSelector(tiny_model(), config, sizes)
    rows = [name for name, size in sizes.items() for _ in range(size)]
    draw, pools = random.Random(0), 300
    kept, overflows = dict.fromkeys(sizes, 0), 0
    for _ in range(pools):
        pool = sorted(draw.sample(range(100), 12))
        names = [rows[row] for row in pool]
        coreset = selector.select(ragged_batch([4] * 12), names, dataset_index=pool)
        selector.commit()
        for position in coreset.indices.tolist():
            kept[names[position]] += 1
        overflows += sum(name in "cd" for name in names) > 6
    outlook = expect_pool(sizes, config, 12, 1)
    for name, source in outlook.sources.items():
        assert source.in_coreset == pytest.approx(kept[name] / pools, abs=0.2)
    assert outlook.overflow == pytest.approx(overflows / pools, abs=0.01)


@settings(max_examples=30)  # each draws 2,000 pools
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 40), min_size=1),
    st.integers(1, 30),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.booleans(),
)
def test_kept_rows_add_up_and_no_source_keeps_more_than_it_has(
    sizes: dict[str, int], pool: int, keep: float, by_source: bool
) -> None:
    outlook = expect_pool(sizes, SelectionConfig(keep=keep, by_source=by_source), pool, 1)
    assert sum(source.in_coreset for source in outlook.sources.values()) == pytest.approx(outlook.keep)
    assert sum(source.in_pool for source in outlook.sources.values()) == pytest.approx(outlook.pool)
    for source in outlook.sources.values():
        assert 0 <= source.in_coreset <= min(source.rows, outlook.pool) + 1e-9
        assert 0 <= source.absent <= 1


def test_small_sources_that_never_overflow_are_kept_whole_exactly() -> None:
    outlook = expect_pool({"a": 900, "b": 60, "c": 40}, SelectionConfig(), 64, 8)
    for name in "bc":
        assert outlook.sources[name].in_coreset == outlook.sources[name].in_pool
    whole = expect_pool({"a": 5, "b": 4}, SelectionConfig(keep_count=4), 9, 1)  # the pool is the whole data
    assert [source.in_coreset for source in whole.sources.values()] == [0, 4]


def test_a_schedule_is_taken_at_its_end() -> None:
    outlook = expect_pool({"a": 50, "b": 50}, SelectionConfig(keep_schedule=((0, 1.0), (9, 0.25))), 20, 2)
    assert outlook.keep == 5


def test_the_even_share_is_where_the_rule_turns() -> None:
    for sizes in ({"a": 7, "b": 3}, {"a": 5, "b": 5}, {"a": 90, "b": 5, "c": 4}):
        most = even_share(sizes)
        assert {name for name, size in sizes.items() if size <= most} == find_small_sources(sizes, "auto")


def test_invalid_pools() -> None:
    with pytest.raises(ConfigError, match="A pool of 0 rows cannot be described; pool_rows must be at least 1"):
        expect_pool({"a": 1}, SelectionConfig(), 0, 1)
    with pytest.raises(DataError, match="'b' has no example"):
        expect_pool({"a": 1, "b": 0}, SelectionConfig(), 1, 1)
