"""MathInstruct's sources: their sizes, and which of them the paper keeps whole.

Where the numbers come from. The data set has 262,039 rows; its card has no counts by source. The sizes are those of
Table 1 of the paper that introduced it (Yue et al., MAmmoTH, arXiv 2309.05653), rounded there. It does not list
`CoT/number_comparison`; all others together leave it at most the rows that remain. Which ten sources the CoLM paper
keeps is KEEP_SOURCES of `scripts/run_math_efficient.sh` in its published code: numbers of the sources, sorted by name.
"""

from __future__ import annotations

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
