"""colm's judgments of numbers and formulas agree with math-verify's, except for the listed differences.

math-verify reads LaTeX, so it gets each answer in math mode; its results on plain sentences do not count (it
finds 5 in "not 5", "5 million" and "5!").
"""

from __future__ import annotations

import logging
import re

import pytest
from math_verify import parse, verify
from tests.support.judgments import Pair, judgments

DIFFERENCES: dict[str, list[str]] = {
    "it multiplies adjacent terms": [
        *("1 1/2", "1\\,000", "1 000 000", "12 345", "1\u00a0000", "1\u202f234,", "42 (40 + 2)", "Rs 1,00,000"),
    ],
    "it takes units and letters for variables": [
        "42 km/h",
        "42 m^2",
        "42nd",
        "9 m/s",
        "20k",
        "$3M",
        "1.5 x 10^3",
        "1.5e3",
    ],
    "it knows one currency, and no sign before it": ["€42", "£3.20", "US$42", "-$5"],
    "it does not read Markdown and HTML": ["**42**", "**-7**", "*42*", "__42__", "`42`", "<b>42</b>"],
    "it stops at signs that it does not know, so a part counts as the whole": [
        *(
            "½",
            "2½",
            "\uff14\uff12",
            "10**5",
            "10⁵",
            "10^-2",
            "2·10^3",
            "2**10",
            "2¹⁰",
            "5²",
            "2√5",
            "√2",
            "2 sqrt(5)",
            "+/- 5",
        ),
        *("2ab", "> 5", "5+", "x**2", "[0, \\infty)"),
    ],
    "it reads groups of two digits as a set": ["12,34,567"],
}
"""Reasons why math-verify judges differently, with the answers; a person would agree with colm."""

WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{3,}")
WRAPPED = re.compile(r"\$.*\$|\\\(.*|\\\[.*")


def is_mathematics(text: str) -> bool:
    return not WORD.search(re.sub(r"\\[A-Za-z]+(?:\{[a-zA-Z ]+\})?|sqrt", "", text))


def in_math_mode(text: str) -> str:
    return text if WRAPPED.fullmatch(text) and len(text) > 1 else f"${text}$"


PAIRS = [
    pair
    for pair in judgments()
    if pair.kind not in ("options", "truths", "texts") and is_mathematics(pair.said) and is_mathematics(pair.expected)
]


def test_agrees_with_math_verify_except_as_listed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    assert len(PAIRS) > 200
    reasons = {said: reason for reason, answers in DIFFERENCES.items() for said in answers}
    different: list[Pair] = [
        pair
        for pair in PAIRS
        if verify(parse(in_math_mode(pair.expected)), parse(in_math_mode(pair.said))) is not pair.right
    ]
    assert [pair for pair in different if pair.said not in reasons] == []
    assert set(reasons) == {pair.said for pair in different}
