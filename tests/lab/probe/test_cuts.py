"""Which (K, N) can be judged, and what is said of the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colm.errors import ConfigError
from colm.lab.probe.cuts import WINDOW, Cut, check_pools, check_room, default_cuts, parse_cut


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("8", "--choices 8: a choice is K/N"),
        ("8/", "such as 8/32"),
        ("a/b", "--choices a/b: a choice is K/N"),
        ("8/32/64", "K/N"),
        ("1.5/3", "K/N"),
        ("0/8", "--choices 0/8: of a pool of 8 rows, 0 cannot be kept; keep 1 to 7."),
        ("-1/8", "keep 1 to 7."),
        ("8/8", "--choices 8/8: of a pool of 8 rows, 8 cannot be kept; keep 1 to 7."),
        ("9/8", "keep 1 to 7."),
        ("1/1", "keep at least 1, of a pool of at least 2."),
        ("1/0", "of a pool of at least 2."),
    ],
)
def test_choices_that_are_none_are_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_cut(text)
    assert told in str(caught.value)


@given(st.one_of(st.text(max_size=8), st.builds("{}/{}".format, st.integers(), st.integers())))
def test_any_text_is_a_choice_or_refused(text: str) -> None:
    try:
        cut = parse_cut(text)
    except ConfigError:
        return
    assert 1 <= cut.kept < cut.pool
    assert parse_cut(str(cut)) == cut


@given(st.integers(1, 30), st.integers(0, 100))
def test_pools_are_the_rows_in_their_order(pool: int, count: int) -> None:
    pools = Cut(1, pool).pools(np.arange(count))
    assert pools.ravel().tolist() == list(range(count // pool * pool))
    assert pools.shape == (count // pool, pool)
    assert Cut(1, pool).pools(np.zeros((count, 3))).shape == (count // pool, pool, 3)


@pytest.mark.parametrize(
    ("configured", "pools", "found"),
    [
        (Cut(8, 32), 8, ["8/32", "8/16", "8/64"]),
        (Cut(16, 32), 8, ["16/32", "16/64"]),
        (Cut(32, 32), 8, ["32/32", "32/64"]),
        (Cut(8, 32), 7, ["8/32", "8/16"]),
    ],
)
def test_by_default_half_and_twice_the_pool_are_judged_if_the_rows_are_enough(
    configured: Cut, pools: int, found: list[str]
) -> None:
    small = [np.zeros(pools * configured.pool, bool)] * 2
    assert [str(cut) for cut in default_cuts(configured, small)] == found


def test_a_default_that_small_sources_fill_in_some_stage_is_left_out() -> None:
    none, some = np.zeros(8 * 32, bool), np.arange(8 * 32) % 6 == 0  # 5 or 6 of 32 rows, 10 or 11 of 64
    assert [str(cut) for cut in default_cuts(Cut(8, 32), [none, some])] == ["8/32", "8/16"]
    assert default_cuts(Cut(1, 2), [np.ones(64, bool)]) == [Cut(1, 2)]


def test_too_few_pools_are_refused() -> None:
    check_pools([Cut(8, 64)], 4 * 64)
    with pytest.raises(ConfigError) as caught:
        check_pools([Cut(8, 64), Cut(8, 65)], 4 * 64)
    assert str(caught.value) == (
        "--choices 8/65: the 256 rows that a stage looks at make 3 pools of 65, but an estimate needs at least 4; "
        "choose a pool of at most 64 rows, or raise --pools."
    )


def test_choices_that_small_sources_fill_are_refused() -> None:
    flags = np.arange(4 * 16) % 4 == 0  # 4 of 16
    check_room([Cut(5, 16)], [flags])
    with pytest.raises(ConfigError) as caught:
        check_room([Cut(4, 16)], [~np.ones(64, bool), flags])
    assert str(caught.value) == (
        "--choices 4/16: rows of small sources leave room for others in 0 of 4 pools of 16, but an estimate needs at "
        "least 4; keep 5 to 15 rows, or set selection.small_sources=none."
    )
    with pytest.raises(ConfigError, match="at least 4; set selection"):
        check_room([Cut(4, 16)], [np.ones(64, bool)])


@given(st.integers(2, 20), st.integers(1, 20), st.integers(0, 2**16))
def test_what_a_refusal_recommends_is_accepted(pool: int, kept: int, seed: int) -> None:
    flags = np.random.default_rng(seed).random(WINDOW * pool) < 0.5
    cut = Cut(min(kept, pool - 1), pool)
    try:
        check_room([cut], [flags])
    except ConfigError as error:
        if "keep" in str(error):
            check_room([Cut(int(str(error).split("keep ")[1].split()[0]), pool)], [flags])
