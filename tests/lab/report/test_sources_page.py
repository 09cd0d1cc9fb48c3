"""The page of a mixture is self-contained and escapes data."""

from __future__ import annotations

from pathlib import Path

from colm import SelectionConfig
from colm.lab.report.sources_page import write_sources_page
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


def test_the_page_is_complete_and_escapes_data(tmp_path: Path) -> None:
    page = write_sources_page(
        survey_of(SIZES), tmp_path / "s.html", name="run", note="Of the first 500 rows."
    ).read_text()
    for words in ("90,000", "Near-duplicates", "middling (20%)", "parallelogram", "Of the first 500 rows.", "MinHash"):
        assert words in page
    for text in ("<b>rare", "<script", "http://", "https://"):
        assert text not in page
    assert "&lt;b&gt;rare&lt;/b&gt;" in page


def test_a_page_without_warnings_says_so(tmp_path: Path) -> None:
    survey = survey_of({"a": 900, "b": 100})
    page = write_sources_page(survey, tmp_path / "s.html", name="run").read_text()
    assert "No warnings: the method suits this mixture" in page
