"""The results of a comparison: `compare.json` and its page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from colm.lab.report import write_comparison
from colm.lab.run.arguments import fill_training
from colm.lab.run.folder import RunFolder
from colm.lab.study.methods import METHODS
from colm.step.files import replace_file
from colm.step.record import ANSWERS_NAME, COMPARE_NAME, SUMMARY_NAME


def write_comparison_json(out: Path, operations: Callable[[Mapping[str, Any]], float] | None = None) -> dict[str, Any]:
    """Gather the finished runs under `out` into `compare.json`: method -> seed -> figures.

    ``macro`` is the mean final evaluation loss over the sources of the training data, ``micro`` the mean weighted by
    training rows, ``small`` and ``big`` the means over small and large sources. For runs that have answered questions,
    ``exact_in`` and ``exact_out`` are the mean shares of correct answers over sources in the training data and over
    other sources; None if there are none.

    Args:
        out: the comparison's folder.
        operations: the counted cost of a run with these settings, for ``operations``; without it, costs that the file
            has stay.
    """
    found: dict[str, dict[str, Any]] = {}
    runs = [RunFolder(path.parent) for path in sorted(out.glob(f"*/seed-*/{SUMMARY_NAME}"))]
    # Means are over the rows of one run, best one whose sources have their own shares of the data.
    whole = next(iter(sorted(runs, key=lambda run: _resamples(run.config()))), None)
    rows = None if whole is None else whole.read(SUMMARY_NAME)
    before = read_counted(out)
    for run in runs:
        seed, settings, summary = run.path.name.removeprefix("seed-"), run.config(), run.read(SUMMARY_NAME)
        if rows is not None and _resamples(settings):
            summary = _with_rows_of(summary, rows)
        each = figures(summary) | _settings(settings) | _exact(run)
        counted = before.get((run.path.parent.name, seed)) if operations is None else operations(settings)
        if counted is not None:
            each["operations"] = counted
        found.setdefault(run.path.parent.name, {})[seed] = each
    order = {name: place for place, name in enumerate(METHODS)}
    methods = sorted(found, key=lambda name: (order.get(name.partition("+")[0], len(order)), name))
    ordered = {name: {seed: found[name][seed] for seed in sorted(found[name], key=int)} for name in methods}
    replace_file(out / COMPARE_NAME, json.dumps(ordered, indent=2) + "\n")
    return ordered


def figures(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of one run in `compare.json`."""
    trained = {
        name: source
        for name, source in summary["sources"].items()
        if source["rows"] and source["eval_loss_after"] is not None
    }
    losses = {name: source["eval_loss_after"] for name, source in trained.items()}
    small = [loss for name, loss in losses.items() if name in summary["small_sources"]]
    big = [loss for name, loss in losses.items() if name not in summary["small_sources"]]
    rows = sum(source["rows"] for source in trained.values())
    return {
        "macro": fmean(losses.values()) if losses else None,
        "micro": sum(loss * trained[name]["rows"] for name, loss in losses.items()) / rows if losses else None,
        "small": fmean(small) if small else None,
        "big": fmean(big) if big else None,
        **{key: summary[key] for key in ("steps", "seconds", "selection_seconds", "peak_memory_bytes")},
    }


def read_counted(out: Path) -> dict[tuple[str, str], float]:
    """Return the counted cost of each method and seed in an existing `compare.json`."""
    held = RunFolder(out).read(COMPARE_NAME) or {}
    return {
        (method, seed): run["operations"]
        for method, by_seed in held.items()
        for seed, run in by_seed.items()
        if run.get("operations") is not None
    }


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    training = fill_training(values.get("training") or {})
    free = (values.get("selection") or {}).get("features") == "none"
    return {"learning_rate": training["learning_rate"], "free": free, "resampled": _resamples(values)}


def _resamples(values: Mapping[str, Any]) -> bool:
    return (values.get("data") or {}).get("temperature") is not None


def _with_rows_of(summary: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """Return a summary with the rows of another run, whose sources have their own shares of the data."""
    rows = {name: source["rows"] for name, source in whole["sources"].items()}
    sources = {name: {**source, "rows": rows.get(name, 0)} for name, source in summary["sources"].items()}
    return {**summary, "sources": sources, "small_sources": whole["small_sources"]}


def _exact(run: RunFolder) -> dict[str, float | None]:
    answers = run.read(ANSWERS_NAME)
    if answers is None:
        return {}
    groups = {"exact_in": answers["in_domain"], "exact_out": answers["out_of_domain"]}
    return {key: group["macro"]["value"] if group else None for key, group in groups.items()}


def write_comparison_page(folder: Path, out: Path | None = None) -> Path:
    """Write a comparison's page, with descriptions of its methods, and return its path. Raises ConfigError."""
    return write_comparison(folder, out=out, descriptions={name: method.what for name, method in METHODS.items()})
