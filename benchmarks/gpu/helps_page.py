"""The page's section on whether selection helps: equal steps, equal time, costs, sources, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from cells import RED, plain, table
from helps_cells import BASES, Runs, by_seed, curve, final, interpolate, less_bases, macro, mean_of, show
from helps_sooner import write_sooner

from colm.lab.intervals import estimate_mean
from colm.lab.report.loss_curves import find_first_reach

TIMED = "control"
"""The method whose run sets the common time."""

Lines = Sequence[Mapping[str, Any]]
CLAIMS = (
    "What this shows: on one card, for a model of 135 million parameters, LoRA of rank 16 and this mixture, which "
    "method ends lower, if its interval over seeds excludes 0 (*), and what a step costs. What it cannot show: larger "
    "models, for which a row costs more and a kernel launch less; other learning rates, none of which was tuned; or "
    "longer training. Two seeds give an interval so wide that only a large difference excludes 0, and about one in "
    "twenty differences does so by chance. Schedules end with each run, so at equal time a longer run still has a "
    "higher rate, and its loss there is usually above that of a run planned to end there."
)


def write_section(lines: list[dict[str, Any]]) -> str:
    """Return the section in Markdown from the lines of figures; the last line of a unit counts."""
    last = {line["unit"]: line for line in lines}
    runs: dict[str, dict[str, Any]] = {}
    answers: dict[str, dict[str, Any]] = {}
    for unit, line in last.items():
        if "fault" not in line and "name" in line:
            held = answers if unit.endswith("/answers") else runs
            held.setdefault(line["name"], {})[str(line["seed"])] = line
    parts = ["## Does it help", *_faults(last, runs), _intro(last, runs, lines)]
    if runs:
        base = last.get("base", {}).get("losses")
        parts += ["### At equal steps", _equal_steps(runs, base, last.get("setting", {}))]
        parts += ["### At equal time", _equal_time(runs, base)]
        parts += [
            "### Sooner than the plain Trainer",
            write_sooner(runs, base, last.get("setting", {}).get("rows", {})),
        ]
        parts += ["### What it costs", _costs(runs)]
        parts += ["### By source", _sources(runs, base, last.get("setting", {}))]
    if answers:
        parts += ["### Right answers", _answers(answers)]
    return "\n\n".join([*parts, CLAIMS]) + "\n"


def _faults(last: Mapping[str, Mapping[str, Any]], runs: Runs) -> list[str]:
    found = [f"{RED} {unit}: {plain(line['fault'])}" for unit, line in last.items() if "fault" in line]
    by_seed: dict[str, list[Mapping[str, Any]]] = {}
    for held in runs.values():
        for seed, line in held.items():
            by_seed.setdefault(seed, []).append(line)
    for seed, group in sorted(by_seed.items()):  # each slice checks only its own runs
        for key, what in (("pools", "pools"), ("init", "first adapters")):
            paired = [line for line in group if line[key] is not None]
            if len({line[key] for line in paired}) > 1:
                told = ", ".join(f"{line['name']} {line[key]}" for line in paired)
                found.append(f"{RED} Runs of seed {seed} had different {what}, so they are not pairs: {told}")
    base = last.get("base", {}).get("losses")
    for name, per_seed in runs.items():
        for seed, line in per_seed.items():
            if base and macro(final(line)) >= macro(base):
                found.append(f"{RED} seed {seed}/{name}: the final loss is not below the initial loss")
    return found


def _intro(last: Mapping[str, Mapping[str, Any]], runs: Runs, lines: Lines) -> str:
    if not runs:
        return f"{RED} No run has ended."
    some = [line for held in runs.values() for line in held.values()]
    setting = last.get("setting", {})
    cards = sorted({line["card"] for line in some})
    seeds = sorted({line["seed"] for line in some})
    steps, pool = some[0]["steps"], some[0]["pool"]
    text = (
        f"{len(some)} runs of {steps} steps, seeds {', '.join(map(str, seeds))}, pools of {pool} rows in one "
        f"micro-batch; {' and '.join(cards)}, torch {setting.get('torch')}, transformers "
        f"{setting.get('transformers')}. The runs of a seed begin with the same adapter and see the same pools; "
        "their logs were compared to check this. Two kinds order all rows by themselves instead: `plain`, and the "
        "methods with `order=balanced`. Losses are means over held-out rows of each source, then over "
        "sources; with two or more seeds, with 95 % t-intervals."
    )
    if len(cards) > 1:
        text += " The cards differ, so seconds are compared within a seed only if its runs used the same card."
    ended = {f"seed {line['seed']}/{line['name']}" for line in some}
    cut = {line["unit"].rpartition("@")[0]: line for line in lines if "@" in line["unit"]}
    for unit, line in cut.items():
        if unit not in ended and "fault" not in last.get(unit, {}):
            text += f" {unit} did not finish: {macro(line['losses']):.4f} after step {line['step']}."
    return text


def _equal_steps(runs: Runs, base: Mapping[str, float] | None, setting: Mapping[str, Any]) -> str:
    rows = [
        ["method", "settings", "rows per step", "learning rate", "seeds", "macro loss", *(f"minus {b}" for b in BASES)],
        ["---", "---", "---:", "---:", "---:", *["---"] * (1 + len(BASES))],
    ]
    finals = {name: by_seed(held, lambda line: macro(final(line))) for name, held in runs.items()}
    if base:
        rows.append(["before training", "", "", "", "", f"{macro(base):.4f}", *[""] * len(BASES)])
    for name, held in runs.items():
        line = next(iter(held.values()))
        values = list(finals[name].values())
        rows.append(
            [
                name,
                f"`{line['method']}`",
                str(line["kept"]),
                f"{line['rate']:.2g}",
                str(len(values)),
                show(estimate_mean(values)),
                *less_bases(name, finals),
            ]
        )
    note = (
        "Learning rates scale with the square root of the rows per step; neither the base rate nor any method's rate "
        "was tuned. Differences are paired by seed; * marks intervals that exclude 0."
    )
    if "small_share" in setting:
        note += (
            f" The small sources have {setting['small_share']:.1%} of the rows. So at a quarter, keeping them "
            "whole would leave no room for others, and weights balance the sources instead (`balance`)."
        )
    return f"{table(rows)}\n\n{note}"


def _equal_time(runs: Runs, base: Mapping[str, float] | None) -> str:
    ends = {seed: line["seconds"] for seed, line in runs.get(TIMED, {}).items()}
    targets = by_seed(runs.get(TIMED, {}), lambda line: macro(final(line)))
    if not ends:
        return f"No run of {TIMED} has finished, so there is no common time for the others."
    found: dict[str, dict[str, float]] = {}
    reach: dict[str, list[float]] = {}
    for name, held in runs.items():
        for seed, line in held.items():
            if seed not in ends or line["card"] != runs[TIMED][seed]["card"]:
                continue
            x, y = curve(line, base)
            found.setdefault(name, {})[seed] = interpolate(x, y, ends[seed])
            reached = find_first_reach(x, y, targets[seed])
            reach.setdefault(name, [])
            if reached is not None:
                reach[name].append(reached)
    rows = [
        [
            "method",
            "seeds",
            "macro loss at that time",
            *(f"minus {b}" for b in BASES),
            f"seconds to {TIMED}'s final loss",
        ],
        ["---", "---:", "---", *["---"] * len(BASES), "---"],
    ]
    for name, values in found.items():
        there = f"{fmean(reach[name]):.1f}" if reach[name] else "-"
        if len(reach[name]) < len(values):
            there += f" ({len(reach[name])} of {len(values)} seeds reach it)"
        rows.append(
            [name, str(len(values)), show(estimate_mean(list(values.values()))), *less_bases(name, found), there]
        )
    note = (
        f"Losses when {TIMED}'s run of the seed ended, after {fmean(ends.values()):.1f} s of training on average, "
        "interpolated between evaluations; a run that ended sooner counts with its end. Seconds exclude evaluations."
    )
    return f"{table(rows)}\n\n{note}"


def _costs(runs: Runs) -> str:
    rows = [
        [
            "method",
            "seconds per step",
            "of which selection",
            "share",
            "peak GiB",
            "rows trained on",
            "order, s",
            "match",
            "at random",
        ],
        ["---", *["---:"] * 8],
    ]
    for name, held in runs.items():
        lines = list(held.values())
        step = fmean(line["seconds"] / line["steps"] for line in lines)
        selection = fmean(line["selection_seconds"] / line["steps"] for line in lines)
        peaks = [line["peak_gib"] for line in lines if line["peak_gib"] is not None]
        orders = mean_of([line["order_seconds"] for line in lines])
        cosines = [mean_of([line[key] for line in lines]) for key in ("match", "match_random")]
        rows.append(
            [
                name,
                f"{step:.4f}",
                f"{selection:.4f}",
                f"{selection / step:.0%}",
                f"{max(peaks):.2f}" if peaks else "-",
                f"{fmean(line['rows'] for line in lines):.0f}",
                "-" if orders is None else f"{orders:.1f}",
                *("-" if value is None else f"{value:.3f}" for value in cosines),
            ]
        )
    note = (
        "The clock waits for the GPU after each step, so a step's selection is charged only for its own work. Match is "
        "the cosine between the mean features of the rows kept from large sources and of the pool, next to that of the "
        "same number of random rows. Order: seconds on the CPU to make the features of all rows, once before training, "
        "for a balanced order; they are not in the seconds of the run, but dealing the rows is."
    )
    return f"{table(rows)}\n\n{note}"


def _sources(runs: Runs, base: Mapping[str, float] | None, setting: Mapping[str, Any]) -> str:
    sizes, small = setting.get("rows", {}), setting.get("small_sources", [])
    means = {
        name: {
            source: fmean(line["evaluations"][-1]["losses"][source] for line in held.values())
            for source in _names(held)
        }
        for name, held in runs.items()
    }
    names = sorted(next(iter(means.values())), key=lambda source: -sizes.get(source, 0))
    rows = [
        ["source", "rows", *(["before"] if base else []), *means],
        ["---", "---:", *["---:"] * (bool(base) + len(means))],
    ]
    for source in names:
        before = [f"{base[source]:.3f}"] if base else []
        cells = [f"{found[source]:.3f}" for found in means.values()]
        rows.append([f"{source}{' (small)' if source in small else ''}", str(sizes.get(source, "")), *before, *cells])
    return f"{table(rows)}\n\nFinal losses, averaged over each method's seeds, which need not be the same."


def _answers(answers: Runs) -> str:
    shares = {name: by_seed(held, lambda line: 100 * line["macro"]) for name, held in answers.items()}
    rows = [
        ["model", "seeds", "right, %", *(f"minus {b}" for b in BASES), "cut off"],
        ["---", "---:", *["---"] * 4, "---:"],
    ]
    for name, values in shares.items():
        lines = list(answers[name].values())
        cut = sum(line["cut_off"] for line in lines) / sum(line["questions"] for line in lines)
        seeds = "" if name == "base" else str(len(values))
        rows.append(
            [name, seeds, show(estimate_mean(list(values.values())), 1), *less_bases(name, shares, 1), f"{cut:.0%}"]
        )
    asked = next(iter(next(iter(answers.values())).values()))
    note = (
        f"Exact match of greedy answers to {asked['questions']} questions, mean over {len(asked['sources'])} sources. "
        "Cut off: answers that had not ended at the token limit."
    )
    return f"{table(rows)}\n\n{note}"


def _names(held: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(next(iter(held.values()))["evaluations"][-1]["losses"])
