"""A survey of a mixture, for its page."""

from __future__ import annotations

from colm import SelectionConfig
from colm.lab.sources.mixture import SourceFacts, Survey, find_warnings
from colm.lab.sources.pools import expect_pool

SIZES = {"a-source-with-a-name-as-long-as-names-become/data": 90_000, "middling": 12_000, "<b>rare</b>": 300}


def survey_of(sizes: dict[str, int]) -> Survey:
    outlook = expect_pool(sizes, SelectionConfig(), 128, 16)
    facts = [
        SourceFacts(
            name,
            tokens=150 * size,
            mean_length=150.0,
            long_length=412.0,
            duplicates=0.2 * (name == "middling"),
            looked_at=min(size, 2000),
            words=["parallelogram", "circumference", "legs", "an-unbroken-word-that-goes-on-for-longer-than-a-phone"],
            examples=[(7, "One <script>alert(1)</script> row\nwith two lines"), (12_345, "word " * 80), (9, "x" * 300)],
            why=f"{size:,} rows are fewer than the uniform share of 34,100",
            outlook=outlook.sources[name],
        )
        for name, size in sizes.items()
    ]
    return Survey(facts, outlook, list(find_warnings(sizes, SelectionConfig(), outlook, facts)))
