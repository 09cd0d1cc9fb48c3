"""The small-source rule on MathInstruct gives the ten sources that the paper keeps whole.

The exact sizes could not be had here, so the rule is also checked on sizes that are off by a tenth either way.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.support.mathinstruct import ROWS, SIZES, SMALL

from colm import SelectionConfig
from colm.lab.sources.pools import expect_pool
from colm.step.sources import find_small_sources

LEFT_OVER = ROWS - sum(size for name, size in SIZES.items() if "number_comparison" not in name)


def test_the_rule_gives_the_papers_ten_small_sources_and_four_big_ones() -> None:
    assert len(SIZES) == 14
    assert find_small_sources(SIZES, "auto") == SMALL
    assert {name.rpartition("/")[2] for name in set(SIZES) - SMALL} == {
        "aqua_rat.json",
        "gsm_rft.json",
        "math50k_camel.json",
        "mathqa.json",
    }


@given(
    st.fixed_dictionaries({name: st.integers(round(0.9 * size), round(1.1 * size)) for name, size in SIZES.items()}),
    st.integers(1, LEFT_OVER),
)
def test_it_does_so_for_all_sizes_that_the_rounding_allows(sizes: dict[str, int], left_over: int) -> None:
    assert find_small_sources(sizes | {"data/CoT/number_comparison.json": left_over}, "auto") == SMALL


def test_at_the_papers_keep_small_sources_do_not_fill_the_budget() -> None:
    outlook = expect_pool(SIZES, SelectionConfig(keep_count=64), 128, 16)
    assert 30 < outlook.small_rows < 32
    assert outlook.overflow < 1e-6
