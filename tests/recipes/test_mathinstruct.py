"""The small-source rule on MathInstruct gives the ten sources that the paper keeps whole.

Where the numbers come from. The data set has 262,039 rows; its card has no counts by source. The sizes are those of
Table 1 of the paper that introduced it (Yue et al., MAmmoTH, arXiv 2309.05653), rounded there. It does not list
`CoT/number_comparison`; all others together leave it at most the rows that remain. Which ten sources the CoLM paper
keeps is KEEP_SOURCES of `scripts/run_math_efficient.sh` in its published code: numbers of the sources, sorted by name.
The exact sizes could not be had here, so the rule is also checked on sizes that are off by a tenth either way.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colm import SelectionConfig
from colm.lab.sources.pools import expect_pool
from colm.step.sources import find_small_sources

ROWS = 262_039
SIZES = {
    "data/CoT/MATH_train.json": 7_000,
    "data/CoT/TheoremQA.json": 600,
    "data/CoT/aqua_rat.json": 90_000,
    "data/CoT/college_math.json": 1_800,
    "data/CoT/gsm_rft.json": 28_000,
    "data/CoT/gsm_train.json": 7_000,
    "data/CoT/math50k_camel.json": 50_000,
    "data/CoT/number_comparison.json": 300,  # not in the table
    "data/PoT/MATH_train.json": 7_000,
    "data/PoT/TheoremQA.json": 700,
    "data/PoT/aqua_rat_filtered.json": 9_700,
    "data/PoT/gsm_gpt4.json": 14_000,
    "data/PoT/mathqa.json": 25_000,
    "data/PoT/numglue.json": 13_000,
}
KEPT_BY_THE_PAPER = (0, 1, 3, 5, 7, 8, 9, 10, 11, 13)
SMALL = {name for number, name in enumerate(sorted(SIZES)) if number in KEPT_BY_THE_PAPER}
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
