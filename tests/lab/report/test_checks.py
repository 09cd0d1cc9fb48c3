"""Each sign of failure on a run that shows it and on one that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.reports import write_run

from colm.lab.report import checks
from colm.lab.report.checks import Verdict
from colm.lab.report.runs import Run, read_run

RISING = [4.0, 3.0, 2.6, 2.5, 2.4, 2.4, 2.5, 2.6, 2.7, 2.8, 2.9]
FALLING = [4.0, 3.0, 2.6, 2.5, 2.4, 2.4, 2.38, 2.37, 2.36, 2.35, 2.36]
NO_FEATURES = {"features": "none"}
CONTROL: dict[str, Any] = {"selection": NO_FEATURES, "line": {"seconds": 0.0, "match": None, "match_random": None}}


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def build(name: str = "mine", **changes: Any) -> Run:
        return read_run(write_run(tmp_path / name, **changes))

    return build


def expect(verdict: Verdict, state: str, *words: str) -> None:
    assert verdict.state == state, verdict
    text = " ".join(verdict)
    for word in words:
        assert word in text, f"{word!r} is not in {text!r}"
    assert bool(verdict.cause) == bool(verdict.advice) == (state in ("problem", "note"))


def test_a_healthy_run_has_no_problem(make: Any) -> None:
    run, control = make(), make("control", **CONTROL)
    assert [verdict.state for verdict in checks.check_run(run)] == ["fine"] * 7
    verdicts = checks.check_run(run, [run, control])
    assert [verdict.state for verdict in verdicts] == ["fine"] * 9
    assert len({verdict.title for verdict in verdicts}) == 9
    assert {verdict.state for verdict in checks.check_run(control, [run, control])} == {"fine"}


def test_problems_come_first(make: Any) -> None:
    run = make(losses={"poems": RISING}, line={"match": None})
    assert [verdict.state for verdict in checks.check_run(run)] == ["problem", "unknown", *["fine"] * 5]


def test_a_small_source_that_rises_by_its_labels(make: Any) -> None:
    verdict = checks.check_small_sources(make(losses={"history": RISING}))
    expect(verdict, "problem", "A small source gets worse", "history 2.400 and 2.900", "label may be wrong")


def test_a_small_source_that_rises_by_too_many_passes(make: Any) -> None:
    run = make(losses={"poems": RISING}, sizes={"algebra": 900, "poems": 8}, steps=200)
    verdict = checks.check_small_sources(run)
    expect(verdict, "problem", f"Too many passes over its rows (poems {run.kept['poems'] / 8:.1f})", "fewer steps")
    assert "label may be wrong" not in verdict.cause


def test_a_small_source_that_rises_by_overflow(make: Any) -> None:
    run = make(losses={"poems": RISING, "history": RISING}, line={"kept_count": 20, "small_kept": 20})
    verdict = checks.check_small_sources(run)
    expect(verdict, "problem", "2 small sources get worse", "fill the whole budget", "Raise selection.keep")


def test_small_sources_that_fall_or_cannot_be_judged(make: Any) -> None:
    expect(checks.check_small_sources(make("falls", losses={"poems": FALLING})), "fine")
    expect(checks.check_small_sources(make("big", losses={"algebra": RISING})), "fine")
    even = make("even", sizes={"a": 50, "b": 50})
    expect(checks.check_small_sources(even), "fine", "There is no small source")
    run = make()
    expect(checks.check_small_sources(run._replace(evaluations=run.evaluations[:1])), "unknown", "eval_steps")


def test_overflow(make: Any) -> None:
    full = make("full", line={"kept_count": 20, "small_kept": 20})
    expect(checks.check_overflow(full), "problem", "In 100% of the steps", "Raise selection.keep")
    whole = make("whole", line={"pool_count": 20, "kept_count": 20, "small_kept": 20})  # nothing was left out
    expect(checks.check_overflow(whole), "fine")
    expect(checks.check_overflow(make()), "fine", "0% of the steps")


def test_match(make: Any) -> None:
    low = {"match": 0.75, "match_random": 0.75}
    expect(checks.check_match(make("low", line=low)), "problem", "0.750, random rows 0.750", "features=none")
    noisy = make("noisy", line=low, selection={"features": "spsa"})
    expect(checks.check_match(noisy), "problem", "few probes")
    expect(
        checks.check_match(make("high", line={"match": 0.8, "match_random": 0.75})),
        "fine",
        "over 60 steps: this closes 20%",
    )
    near = {"match": 0.97, "match_random": 0.966}  # a tenth of the remaining gap
    expect(checks.check_match(make("near", line=near)), "fine", "0.970, random rows 0.966", "closes 12%")
    expect(checks.check_match(make("level", line={**near, "match": 0.967})), "problem", "closes 3%")
    expect(checks.check_match(make("none", **CONTROL)), "fine", "at random")
    expect(checks.check_match(make("short", steps=4)), "unknown", "4 steps with a match")
    expect(checks.check_match(make("old", line={"match_random": None})), "unknown", "0 steps")
    expect(checks.check_match(make("broken", line={"match": float("nan")})), "unknown", "0 steps")


def test_time(make: Any) -> None:
    # About half of the 64 pool rows are kept, so training on the rest would take about as long: 0.4 s.
    slow, quick = {"seconds": 0.6, "step_seconds": 1.0}, {"seconds": 0.2, "step_seconds": 0.7}
    verdict = checks.check_selection_time(make("slow", line=slow))
    expect(verdict, "problem", "Selection takes 60% of the time, 0.6 s per step", "pass_tokens", "head_chunk_tokens")
    expect(checks.check_selection_time(make("quick", line=quick)), "fine", "29% of the time")
    whole = make("whole", line={**quick, "kept_count": 64})
    expect(checks.check_selection_time(whole), "problem", "Every row is kept")
    expect(checks.check_selection_time(make("none", **CONTROL)), "fine", "no selection pass")
    expect(checks.check_selection_time(make("old", line={"step_seconds": None})), "unknown")


def test_nonfinite_features(make: Any) -> None:
    run = make("broken", line={"nonfinite": 2})
    expect(checks.check_nonfinite_features(run), "problem", "120 rows in 60 steps of 60", "bf16")
    expect(checks.check_nonfinite_features(make()), "fine")


def test_unlabeled_rows(make: Any) -> None:
    run = make("cut", line={"unlabelled": 3})
    expect(checks.check_unlabelled(run), "problem", "180 rows of 3,840", "(4.7%)", "data.max_length")
    expect(checks.check_unlabelled(make()), "fine", "0 rows of 3,840")


def test_losses_that_are_not_finite(make: Any) -> None:
    broken = make("broken", losses={"code": [4.0, 3.0, *[float("nan")] * 9]})
    expect(checks.check_finite_losses(broken), "problem", "The first one: code at step 12", "learning rate")
    run = make()
    expect(checks.check_finite_losses(run), "fine", "11 evaluations")
    expect(checks.check_finite_losses(run._replace(evaluations=[])), "unknown", "validation_rows")


def test_lag(make: Any) -> None:
    run, better, worse = make(), make("better", gain=0.2, **CONTROL), make("worse", gain=-0.2, **CONTROL)
    verdict = checks.check_lag(run, better)
    expect(verdict, "note", "Macro loss after 60 steps", "better:", "one run each", "adam", checks.DECIDES)
    expect(checks.check_lag(run, worse), "fine", "worse:")
    expect(checks.check_lag(run, None), "unknown", "selection.features=none")
    early = better._replace(evaluations=better.evaluations[:4])
    expect(checks.check_lag(run, early), "note", "after 18 steps")
    expect(checks.check_lag(run, better._replace(evaluations=[])), "unknown", "at the same step")


def test_memory(make: Any) -> None:
    run, control = make(memory=3 * 2**30), make("control", memory=2 * 2**30, **CONTROL)
    verdict = checks.check_memory(run, control)
    expect(verdict, "problem", "Peak 3,072 MiB; control: 2,048 MiB", "pass_tokens", "head_chunk_tokens")
    expect(checks.check_memory(run, make("same", memory=3 * 2**30, **CONTROL)), "fine")
    expect(checks.check_memory(run, None), "unknown")
    expect(checks.check_memory(make("none", memory=None), control), "unknown")
    assert run.summary is not None
    elsewhere = run._replace(summary=run.summary._replace(memory_kind="device"))
    expect(checks.check_memory(elsewhere, control), "unknown", "same kind")
    expect(checks.check_memory(make("going", finished=False), control), "unknown")


def test_the_control_is_found_by_its_settings(make: Any) -> None:
    run = make()
    ruled = make("ruled", **CONTROL)
    random = make("random", **{**CONTROL, "selection": {**NO_FEATURES, "small_sources": "none"}})
    whole = make("whole", **{**CONTROL, "line": {**CONTROL["line"], "kept_count": 64}})
    assert checks.find_control([run, whole, random, ruled]) is ruled
    assert checks.find_control([run, whole, random]) is random
    assert checks.find_control([run, whole]) is None
    assert len(checks.check_run(ruled, [run, ruled])) == 7  # the control is not measured against itself
