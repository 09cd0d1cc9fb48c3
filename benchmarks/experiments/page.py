"""The page of an experiment: tables as Markdown, a plot, and the figures as JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import yaml

matplotlib.use("svg")
from matplotlib import pyplot as plt

from colm.lab.intervals import Interval, estimate_difference, estimate_mean
from colm.lab.report.comparison import (
    METRICS,
    Method,
    count_cost,
    final_losses,
    find_method,
    loss_differences,
    read_comparison,
)
from colm.lab.report.loss_curves import Axis, average_curves, find_reach, macro_loss

sys.path.insert(0, str(Path(__file__).parents[1]))
from keep import KEPT
from plan import Experiment

RESULTS = Path(__file__).parents[2] / "docs" / "results"
EXACT = ("exact_in", "exact_out")
BASES = ("random", "control", "random-n")
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999"]


def show(interval: Interval | None, digits: int = 4, *, sign: bool = False) -> str:
    if interval is None:
        return "-"
    mean = f"{interval.mean:{'+' if sign else ''}.{digits}f}"
    return mean if interval.half is None else f"{mean} ± {interval.half:.{digits}f}"


def tabulate_losses(methods: Sequence[Method]) -> list[str]:
    lines = [
        "| method | seeds | macro | micro | small sources | large sources |",
        "| --- | ---: | --- | --- | --- | --- |",
    ]
    for method in methods:
        losses = final_losses(method)
        cells = " | ".join(show(losses[metric]) for metric in METRICS)
        lines.append(f"| {method.name} | {len(method.figures)} | {cells} |")
    return lines


def tabulate_differences(methods: Sequence[Method], base: Method) -> list[str]:
    lines = [
        f"### Minus {base.name}, paired by seed",
        "",
        "| method | macro | micro | small sources | large sources |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method in methods:
        if method.name != base.name:
            found = loss_differences(method, base)
            cells = " | ".join(show(found[metric], sign=True) for metric in METRICS)
            lines.append(f"| {method.name} | {cells} |")
    return [*lines, ""]


def tabulate_exact(held: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Return the shares of right answers, inside and outside the training mixture, of the evaluated runs."""
    exact = {
        name: {key: {seed: 100 * run[key] for seed, run in runs.items() if run.get(key) is not None} for key in EXACT}
        for name, runs in held.items()
    }
    if not any(figures[key] for figures in exact.values() for key in EXACT):
        return []
    lines = [
        "## Right answers, %",
        "",
        "Exact match of greedy answers, mean over sources; the last columns are minus the control, paired by seed.",
        "",
        "| method | in-domain | out-of-domain | in-domain | out-of-domain |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, figures in exact.items():
        cells = [show(estimate_mean(list(figures[key].values())), 1) for key in EXACT]
        base = exact.get("control", {key: {} for key in EXACT})
        if name != "control":
            cells += [show(estimate_difference(figures[key], base[key]), 1, sign=True) for key in EXACT]
        else:
            cells += ["-", "-"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def tabulate_costs(methods: Sequence[Method]) -> list[str]:
    random = find_method(methods, "random")
    found = final_losses(random)["macro"] if random else None
    lines = [
        "| method | seconds per step | of which selection | steps to random's macro loss | seconds to it | examples |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method in methods:
        cost = count_cost(method)
        reach = find_reach(method, found.mean) if found else None
        steps = "-" if reach is None or reach.steps is None else f"{reach.steps:.0f}"
        seconds = "-" if reach is None or reach.seconds is None else f"{reach.seconds:.0f}"
        rows = "-" if cost.rows is None else f"{cost.rows:.0f}"
        lines.append(
            f"| {method.name} | {cost.step_seconds:.2f} | {cost.selection_seconds:.2f} | {steps} | {seconds} | {rows} |"
        )
    return lines


def draw(methods: Sequence[Method], path: Path) -> None:
    plt.rcParams["svg.hashsalt"] = "colm"
    axes: tuple[tuple[Axis, str], ...] = (
        ("step", "optimiser steps"),
        ("rows", "examples trained on"),
        ("seconds", "training seconds, selection included"),
    )
    figure, places = plt.subplots(1, 3, figsize=(13, 4.2), sharey=True)
    for place, (axis, label) in zip(places, axes, strict=True):
        for number, method in enumerate(methods):
            band = average_curves(method, axis, macro_loss)
            points = [(x, y) for x, y in zip(band.x, band.y, strict=True) if x > 0]
            place.plot(
                *zip(*points, strict=True),
                label=method.name,
                color=COLOURS[number % len(COLOURS)],
                linestyle="-" if number < len(COLOURS) else "--",
            )
        place.set_xlabel(label)
    places[0].set_ylabel("macro evaluation loss")
    places[0].set_yscale("log")
    handles, labels = places[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.06 + 0.05 * (len(methods) // 3), 1, 1))
    figure.savefig(path, metadata={"Date": None})


def write_page(name: str, experiment: Experiment, folder: Path) -> None:
    """Write docs/results/NAME.md, .svg and .json from the runs in `folder`, a comparison's output folder."""
    methods = select_runs(read_comparison(folder), experiment)
    config = yaml.safe_load(next(folder.glob("*/seed-*/config.yaml")).read_text(encoding="utf-8"))
    training = config["training"]
    settings = [
        json.loads((KEPT / experiment.mixture / f"{method.name}.seed-{seed}.json").read_text(encoding="utf-8"))[
            "setting"
        ]
        for method in methods
        for seed in method.figures
    ]
    lines = [
        f"# {experiment.title}",
        "",
        f"`python benchmarks/experiments/run.py {name}`; {describe_settings(settings)}. Raw figures: "
        f"[{name}.json]({name}.json).",
        "",
        f"{experiment.about} {training['max_steps']} steps, AdamW with learning rate {training['learning_rate']} and "
        f"{training.get('lr_scheduler_type', 'linear')} decay{', bfloat16' if training.get('bf16') else ''}, pools of "
        f"{training['per_device_train_batch_size'] * training['gradient_accumulation_steps']} rows. Losses are means "
        "over held-out rows, and over seeds with 95 % t-intervals; one seed gives no interval and supports no claim. "
        "Seconds come from a shared machine; only their ratios are meaningful.",
        "",
        f"![macro loss]({name}.svg)",
        "",
        "## Final evaluation losses",
        "",
        *tabulate_losses(methods),
        "",
    ]
    for base_name in BASES:
        base = find_method(methods, base_name)
        if base is not None:
            lines += tabulate_differences(methods, base)
    raw = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    held = {method.name: {seed: raw[method.name][seed] for seed in method.figures} for method in methods}
    lines += [*tabulate_exact(held), "## Cost", "", *tabulate_costs(methods)]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    draw(methods, RESULTS / f"{name}.svg")


def select_runs(methods: Sequence[Method], experiment: Experiment) -> list[Method]:
    """Return the experiment's methods, in its order, with only its seeds."""
    found = []
    for name in experiment.methods:
        method = find_method(methods, name)
        if method is None:
            continue
        seeds = [str(seed) for seed in experiment.seeds if str(seed) in method.figures]
        if seeds:
            figures = {seed: method.figures[seed] for seed in seeds}
            found.append(Method(name, figures, {seed: method.curves[seed] for seed in seeds if seed in method.curves}))
    return found


def describe_settings(settings: Sequence[str]) -> str:
    """Return hardware, versions, the commits of the runs, and the seeds."""
    commits = sorted({found[1] for text in settings if (found := re.search(r"commit (\w+)", text))})
    seeds = sorted({int(found[1]) for text in settings if (found := re.search(r"seeds (\d+)$", text))})
    hardware = sorted({text.partition("; commit")[0] for text in settings})
    return f"{' and '.join(hardware)}; commits {', '.join(commits)}; seeds {', '.join(map(str, seeds))}"
