"""The page of a mixture is self-contained and escapes data."""

from __future__ import annotations

from pathlib import Path

from tests.support.surveys import SIZES, survey_of

from colm.lab.report.sources_page import write_sources_page


def test_the_page_is_complete_and_escapes_data(tmp_path: Path) -> None:
    page = write_sources_page(
        survey_of(SIZES), tmp_path / "s.html", name="run", note="Of the first 500 rows."
    ).read_text()
    for words in (
        "90,000",
        "Near-duplicates",
        "middling (20%)",
        "parallelogram",
        "Of the first 500 rows.",
        "MinHash",
        "expected in a coreset",
    ):
        assert words in page
    for text in ("<b>rare", "<script>alert", "http://", "https://"):
        assert text not in page
    assert "&lt;b&gt;rare&lt;/b&gt;" in page


def test_a_page_without_warnings_says_so(tmp_path: Path) -> None:
    survey = survey_of({"a": 900, "b": 100})
    page = write_sources_page(survey, tmp_path / "s.html", name="run").read_text()
    assert "No warnings: the method suits this mixture" in page
