"""Plotted values against loops over the lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.files import read_lines
from tests.support.reports import write_run

from colm.lab.report import measures
from colm.lab.report.runs import read_run


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30),
    st.integers(1, 40),
)
def test_slide_ratio_is_the_ratio_of_the_windows_sums(counts: list[tuple[int, int]], window: int) -> None:
    above, below = [a for a, _ in counts], [b for _, b in counts]
    found = measures.slide_ratio(above, below, window)
    for i in range(len(counts)):
        tops = sum(above[j] for j in range(len(counts)) if i - window < j <= i)
        bottoms = sum(below[j] for j in range(len(counts)) if i - window < j <= i)
        assert found[i] == (pytest.approx(tops / bottoms) if bottoms else None)


@given(st.integers(0, 1000), st.integers(2, 50))
def test_thin_keeps_the_ends_and_no_more_than_asked(count: int, most: int) -> None:
    x = [float(i) for i in range(count)]
    points = measures.thin(x, x, most)
    assert points.x == points.y
    assert len(points.x) == min(count, most)
    assert not count or (points.x[0], points.x[-1]) == (0, count - 1)


def test_thin_drops_values_that_cannot_be_plotted() -> None:
    assert measures.thin([1, 2, 3, 4], [None, float("nan"), float("inf"), 5.0]) == ([4], [5.0])


def test_traces_follow_the_lines(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine", steps=30)
    run = read_run(folder)
    lines = read_lines(folder / "selection.jsonl")
    kept = sum(len(line["kept"].get("code", [])) for line in lines[20:])
    pooled = sum(len(line["pool"].get("code", [])) for line in lines[20:])
    assert measures.trace_kept_share(run, "code", 10).y[-1] == pytest.approx(kept / pooled)
    every = sum(line["kept_count"] for line in lines)
    code = sum(len(line["kept"].get("code", [])) for line in lines)
    assert measures.trace_mixture(run, "code").y[-1] == pytest.approx(code / every)
    match, random = measures.trace_match(run, 10)
    assert match.x == list(range(1, 31))
    assert match.y[-1] == pytest.approx(sum(line["match"] for line in lines[20:]) / 10)
    assert random.y[0] == pytest.approx(lines[0]["match_random"])
    share = sum(line["seconds"] for line in lines[20:]) / sum(line["step_seconds"] for line in lines[20:])
    assert measures.trace_selection_share(run, 10).y[-1] == pytest.approx(share)
    losses = run.evaluations[3].losses
    macro, micro = measures.trace_mean_losses(run)
    assert macro.x[3] == run.evaluations[3].step
    assert macro.y[3] == pytest.approx(sum(losses.values()) / len(losses))
    total = sum(run.rows.values())
    assert micro.y[3] == pytest.approx(sum(loss * run.rows[name] / total for name, loss in losses.items()))
    assert measures.trace_source_loss(run, "code").y[3] == losses["code"]


def test_a_run_without_times_or_matches_has_empty_traces(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "mine", finished=False, line={"step_seconds": None, "match": None}))
    assert measures.trace_match(run, 5) == (([], []), ([], []))
    assert measures.trace_selection_share(run, 5) == ([], [])
    assert measures.sum_seconds(run) is None


def test_the_table_adds_up(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "mine"))
    rows = measures.tabulate_sources(run)
    assert [row.name for row in rows] == run.sources
    assert sum(row.trained_share or 0 for row in rows) == pytest.approx(1)
    assert sum(row.data_share or 0 for row in rows) == pytest.approx(1)
    assert sum(row.pooled for row in rows) == 60 * 64
    assert all(row.kept_share == 1 for row in rows if row.small)
    assert rows[0].before == run.evaluations[0].losses[rows[0].name]
    assert rows[0].after == run.evaluations[-1].losses[rows[0].name]


def test_seconds_are_the_summarys_or_those_so_far(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "done"))
    assert run.summary is not None
    assert measures.sum_seconds(run) == (run.summary.seconds, run.summary.selection_seconds)
    going = read_run(write_run(tmp_path / "going", finished=False))
    whole, selection = measures.sum_seconds(going) or (0, 0)
    assert whole == pytest.approx(sum(step.step_seconds or 0 for step in going.steps))
    assert selection == pytest.approx(sum(step.seconds for step in going.steps))
