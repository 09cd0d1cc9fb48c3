"""A comparison's results against its files; the first reach of a loss against a fine grid."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.support.reports import SIZES, write_comparison_folder

from colm.errors import ConfigError
from colm.lab.report.comparison import (
    Curve,
    Figures,
    Method,
    count_cost,
    final_losses,
    find_method,
    list_sources,
    loss_differences,
    read_comparison,
)
from colm.lab.report.conclusion import conclude, state_difference
from colm.lab.report.loss_curves import (
    average_curves,
    average_differences,
    find_first_reach,
    find_reach,
    find_target,
    macro_loss,
)
from colm.lab.report.runs import Evaluation

METHODS = {"random": 0.0, "control": 0.05, "colm": 0.1, "colm+keep=0.25": -0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison_folder(tmp_path_factory.mktemp("comparison"), methods=METHODS)


@pytest.fixture(scope="module")
def methods(folder: Path) -> list[Method]:
    return read_comparison(folder)


def get(methods: list[Method], name: str) -> Method:
    found = find_method(methods, name)
    assert found is not None
    return found


def test_methods_come_in_the_files_order_with_their_curves(methods: list[Method]) -> None:
    assert [method.name for method in methods] == list(METHODS)
    assert all(list(method.figures) == list(method.curves) == ["0", "1", "2"] for method in methods)
    assert list_sources(methods) == [(name, size, name in ("history", "poems")) for name, size in SIZES.items()]


def test_final_losses_and_paired_differences_are_scipys(folder: Path, methods: list[Method]) -> None:
    held = json.loads((folder / "compare.json").read_text())
    for metric in ("macro", "micro", "small", "big"):
        mine = [held["colm"][seed][metric] for seed in "012"]
        its = [held["control"][seed][metric] for seed in "012"]
        found = final_losses(get(methods, "colm"))[metric]
        assert found is not None
        low, high = stats.ttest_1samp(mine, 0.0).confidence_interval(0.95)
        assert (found.mean, 2 * (found.half or 0)) == pytest.approx((np.mean(mine), high - low))
        found = loss_differences(get(methods, "colm"), get(methods, "control"))[metric]
        assert found is not None
        low, high = stats.ttest_rel(mine, its).confidence_interval(0.95)
        assert (found.mean - (found.half or 0), found.mean + (found.half or 0)) == pytest.approx((low, high))


def test_costs_are_per_step(methods: list[Method]) -> None:
    cost = count_cost(get(methods, "colm"))
    assert cost.steps == 60
    assert cost.step_seconds == pytest.approx(0.65)
    assert 0.2 < cost.selection_seconds < 0.25
    assert cost.training_seconds == pytest.approx(cost.step_seconds - cost.selection_seconds)
    assert cost.rows == 60 * 32
    assert cost.peak_memory == 3 * 2**30


def test_curves_are_means_with_the_lowest_and_the_highest_seed(methods: list[Method]) -> None:
    colm = get(methods, "colm")
    band = average_curves(colm, "seconds", macro_loss)
    fourth = [fmean(curve.evaluations[4].losses.values()) for curve in colm.curves.values()]
    assert band.x[4] == pytest.approx(24 * 0.65)
    assert (band.y[4], band.low[4], band.high[4]) == pytest.approx((fmean(fourth), min(fourth), max(fourth)))
    gap = average_differences(colm, get(methods, "control"), macro_loss)
    assert gap.x == [6.0 * i for i in range(11)]
    assert gap.y[4] == pytest.approx(band.y[4] - average_curves(get(methods, "control"), "step", macro_loss).y[4])
    assert gap.low[4] <= gap.y[4] <= gap.high[4]


def curve(losses: list[float | None], steps: list[int] | None = None) -> Curve:
    places = steps or [10 * i for i in range(len(losses))]
    held = [
        Evaluation(step, 8 * step, 0.5 * step, {} if loss is None else {"a": loss, "not trained on": 99.0})
        for step, loss in zip(places, losses, strict=True)
    ]
    return Curve(held, {"a": 5}, frozenset())


def method(name: str = "m", *curves: Curve) -> Method:
    figures = Figures({"macro": 1.0}, 20, 10.0, 1.0, None)
    return Method(name, {str(i): figures for i in range(len(curves))}, {str(i): each for i, each in enumerate(curves)})


def test_only_steps_that_every_seed_was_evaluated_at_count() -> None:
    band = average_curves(method("m", curve([4.0, 3.0, 1.0]), curve([4.0, 2.0], [0, 20])), "rows", macro_loss)
    assert band == ([0, 160], [4.0, 1.5], [4.0, 1.0], [4.0, 2.0])
    band = average_curves(method("m", curve([4.0, None, float("nan"), 1.0])), "step", macro_loss)
    assert band == ([0, 30], [4.0, 1.0], [], [])
    assert average_curves(method("m"), "step", macro_loss) == ([], [], [], [])
    gap = average_differences(method("m", curve([4.0, 3.0, 1.0])), method("b", curve([4.0, None, 2.0])), macro_loss)
    assert gap == ([0, 20], [0.0, -1.0], [], [])
    assert average_differences(method("m", curve([4.0])), method("b"), macro_loss) == ([], [], [], [])


def test_the_reach_is_interpolated_on_the_mean_curve() -> None:
    held = method("m", curve([4.0, 3.0, 2.0]), curve([4.0, 2.0, 1.0]))  # means 4, 2.5, 1.5
    assert find_reach(held, 2.0) == (15.0, 7.5, None)
    assert find_reach(held, 1.4) == (None, None, None)
    assert find_reach(method("m"), 2.0) == (None, None, None)


def test_costs_lie_on_the_way_to_the_counted_operations_of_the_run() -> None:
    held = method("m", curve([4.0, 3.0, 2.0]))
    counted = held._replace(figures={seed: run._replace(operations=600.0) for seed, run in held.figures.items()})
    steps = next(iter(held.figures.values())).steps
    assert average_curves(counted, "cost", macro_loss).x == [0.0, 6000 / steps, 12000 / steps]
    assert find_reach(counted, 2.0).operations == pytest.approx(12000 / steps)
    assert average_curves(held, "cost", macro_loss).x == []  # methods of equal steps are not counted
    (seed, run), (_, each) = next(iter(counted.figures.items())), next(iter(counted.curves.items()))
    grown = [one._replace(rows=rows) for one, rows in zip(each.evaluations, (0, 30, 120), strict=True)]
    grows = Method("grows", {seed: run._replace(free=True)}, {seed: each._replace(evaluations=grown)})
    assert average_curves(grows, "cost", macro_loss).x == [0.0, 150.0, 600.0]


def test_the_best_free_method_has_the_lowest_mean_macro_loss() -> None:
    def free(name: str, values: list[float], *, free: bool = True) -> Method:
        found = build(name, values)
        return found._replace(figures={seed: run._replace(free=free) for seed, run in found.figures.items()})

    methods = [free("a", [2.0, 2.2]), free("b", [1.9, 2.1]), free("c", [1.0], free=False), free("d", [float("nan")])]
    assert find_target(methods) == ("b", 2.0, None)
    assert find_target([methods[2]]) is None


def test_means_of_resampled_runs_are_over_the_rows_of_the_others(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for seed in ("0", "1", "2"):  # as if equal numbers of rows of each source were drawn
        path = copy / "control" / f"seed-{seed}" / "summary.json"
        summary = json.loads(path.read_text())
        for source in summary["sources"].values():
            source["rows"] = 10
        path.write_text(json.dumps({**summary, "small_sources": []}))
    held = json.loads((copy / "compare.json").read_text())
    for run in held["control"].values():
        run["resampled"] = True
    (copy / "compare.json").write_text(json.dumps(held))
    before, after = (get(read_comparison(each), "control") for each in (folder, copy))
    assert [(curve.rows, curve.small) for curve in after.curves.values()] == [
        (curve.rows, curve.small) for curve in before.curves.values()
    ]


def test_random_reaches_its_own_final_loss(methods: list[Method]) -> None:
    random = get(methods, "random")
    target = fmean(run.losses["macro"] for run in random.figures.values())
    assert find_reach(random, target).steps == pytest.approx(60)
    steps = find_reach(get(methods, "colm"), target).steps
    assert steps is not None
    assert steps < 60
    assert find_reach(get(methods, "colm+keep=0.25"), target) == (None, None, None)


@pytest.mark.parametrize(
    ("mine", "its", "words"),
    [
        (
            [1.0, 1.1, 1.2],
            [2.0, 2.1, 2.21],
            "The final macro loss of m is 1.0033 lower than that of b (95% interval \N{MINUS SIGN}1.0177 to",
        ),
        ([2.0, 2.1, 2.2], [1.0, 1.1, 1.21], "The final macro loss of m is 0.9967 higher"),
        ([1.0, 2.0, 1.5], [1.1, 1.8, 1.5], "Final macro losses of m and b do not differ significantly over 3 seeds"),
        (
            [1.0],
            [1.1],
            "The final macro loss of m is 0.1000 lower than that of b on their one common seed",
        ),
        ([], [1.1], "m and b have no common seed."),
        ([float("nan")], [1.1], "The macro loss of m or b is not finite."),
    ],
)
def test_differences_in_words(mine: list[float], its: list[float], words: str) -> None:
    assert words in state_difference(build("m", mine), build("b", its))


def build(name: str, values: list[float]) -> Method:
    figures = {str(i): Figures({"macro": value}, 1, 1.0, 0.0, None) for i, value in enumerate(values)}
    return Method(name, figures, {})


CONTROL = [2.0, 2.1, 2.21]


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        (
            {
                "a": [1.0, 1.1, 1.2],
                "control": CONTROL,
                "b": [1.0, 1.1, 1.25],
                "c": [3.0, 3.1, 3.2],
                "d": [2.0, 2.2, 2.1],
            },
            "By final macro loss over 3 seeds, a and b are better than control; c is worse than control; d is not "
            "clearly different from control.",
        ),
        ({"a": [1.0, 1.1], "random": CONTROL}, "By final macro loss over 2 seeds, a is better than random."),
        (
            {"a": [1.0], "random": [2.0], "control": [1.5]},
            "One seed cannot decide whether a method is better than control",
        ),
        ({"a": [1.0]}, "There is no control or random method to compare with."),
        ({"control": CONTROL}, "There is no method to compare with control."),
        (
            {"a": [float("nan")] * 3, "control": CONTROL},
            "No method has a final macro loss to compare with that of control.",
        ),
    ],
)
def test_the_conclusion_in_one_sentence(methods: dict[str, list[float]], sentence: str) -> None:
    found = conclude([build(name, values) for name, values in methods.items()])
    assert found.sentence.startswith(sentence)
    compared = {"control", "random"} & set(methods) and len(methods) - 1
    assert len(found.differences) == (compared or 0)


def test_a_deleted_run_folder_keeps_its_results(tmp_path: Path) -> None:
    folder = write_comparison_folder(tmp_path / "c", methods={"random": 0.0, "colm": 0.1}, seeds=2)
    shutil.rmtree(folder / "colm" / "seed-1")
    colm = get(read_comparison(folder), "colm")
    assert list(colm.figures) == ["0", "1"]
    assert list(colm.curves) == ["0"]


GOOD = {"macro": 1.0, "micro": 1.0, "small": None, "big": 1.0, "steps": 1, "seconds": 1.0}
GOOD |= {"selection_seconds": 0.0, "peak_memory_bytes": None}


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (None, r"There is no compare\.json in"),
        ("{", r"compare\.json is not valid JSON"),
        ("[]", "contains no finished runs; it must map methods to seeds to results"),
        ({}, "contains no finished run"),
        ({"colm": {"0": {"macro": 1.0}}}, r"compare\.json, colm, seed 0, lacks 'micro'"),
        ({"colm": {"0": {**GOOD, "macro": "low"}}}, "colm, seed 0, does not have the format that colm compare writes"),
        ({"colm": {"0": {**GOOD, "steps": 0}}}, "has steps=0; a finished run has at least 1"),
    ],
)
def test_broken_comparisons_are_named(tmp_path: Path, held: Any, message: str) -> None:
    if held is not None:
        (tmp_path / "compare.json").write_text(held if isinstance(held, str) else json.dumps(held))
    with pytest.raises(ConfigError, match=message):
        read_comparison(tmp_path)


losses = st.floats(0.5, 5)


@given(st.lists(losses, min_size=1, max_size=8), losses)
def test_the_first_reach_is_where_the_line_first_is_low_enough(curve: list[float], target: float) -> None:
    x = [10.0 * i for i in range(len(curve))]
    fine = np.union1d(np.linspace(0, x[-1], 20001), x)
    held = fine[np.interp(fine, x, curve) <= target * (1 + 1e-6)]
    found = find_first_reach(x, curve, target)
    if found is None:
        assert not len(held)
    else:
        assert np.interp(found, x, curve) <= target * (1 + 2e-6)
        if len(held):
            assert found == pytest.approx(held[0], abs=2 * x[-1] / 20000 + 1e-3)


def test_a_curve_reaches_its_own_end_and_skips_gaps() -> None:
    assert find_first_reach([0, 10], [3.0, 2.0], 2.0) == 10
    assert find_first_reach([0, 10], [3.0, 2.0 + 1e-9], 2.0) == 10
    assert find_first_reach([0, 10, 20], [3.0, float("nan"), 1.0], 2.0) == 10
    assert find_first_reach([0], [float("nan")], 2.0) is None
    assert find_first_reach([], [], 2.0) is None
