"""Pages about thousands of sources: a limited number of plots, and every source in the tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.reports import write_comparison_folder, write_run

from colm.lab.report import read_run, write_comparison, write_report
from colm.lab.report.measures import MOST_DRAWN


def sizes_of(count: int) -> dict[str, int]:
    return {f"source-{i}": 5000 - i for i in range(count)}


def test_a_report_plots_some_sources_and_lists_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def draw(lines: object, *, alt: str, **options: object) -> str:
        drawn.append(alt)
        return "<svg></svg>"

    monkeypatch.setattr("colm.lab.report.run_page.draw_lines", draw)
    counts = {}
    for count in (MOST_DRAWN, 100, 1000):
        sizes = sizes_of(count)
        rising = f"source-{count - 1}"
        folder = write_run(
            tmp_path / f"{count}", sizes=sizes, steps=20, losses={rising: [1.0 + 0.2 * i for i in range(11)]}
        )
        drawn.clear()
        page = write_report([read_run(folder, "run")], folder / "report.html").read_text()
        counts[count] = len(drawn)
        assert any(f" of {rising}." in alt for alt in drawn)
        assert all(f">{name}<" in page for name in sizes)
        assert (f"Of {count} sources, {MOST_DRAWN} are plotted" in page) == (count > MOST_DRAWN)
    assert max(counts.values()) == counts[MOST_DRAWN]  # a source in no pool has fewer plots


def test_a_comparison_plots_the_largest_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colm.lab.report.compare_page.draw_lines", lambda lines, **options: "<svg></svg>")
    sizes = sizes_of(60)
    folder = write_comparison_folder(
        tmp_path / "c", methods={"coreset": 0.1, "random": 0.0}, seeds=1, sizes=sizes, steps=10
    )
    page = write_comparison(folder).read_text()
    assert f"of 60 sources, the {MOST_DRAWN} largest are plotted" in page
    assert [name for name in sizes if f"<h3>{name} " in page] == list(sizes)[:MOST_DRAWN]
