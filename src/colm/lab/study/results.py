"""The results of a comparison: `compare.json` and its page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from colm.lab.report import write_comparison
from colm.lab.run.folder import RunFolder
from colm.lab.study.methods import METHODS
from colm.step.files import replace_file
from colm.step.record import ANSWERS_NAME, COMPARE_NAME, SUMMARY_NAME


def write_comparison_json(out: Path) -> dict[str, Any]:
    """Gather the finished runs under `out` into `compare.json`: method -> seed -> figures.

    ``macro`` is the mean final evaluation loss over the sources of the training data, ``micro`` the mean weighted by
    training rows, ``small`` and ``big`` the means over small and large sources. For runs that have answered questions,
    ``exact_in`` and ``exact_out`` are the mean shares of correct answers over sources in the training data and over
    other sources; None if there are none.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(out.glob(f"*/seed-*/{SUMMARY_NAME}")):
        run, seed = RunFolder(path.parent), path.parent.name.removeprefix("seed-")
        found.setdefault(path.parents[1].name, {})[seed] = figures(run.read(SUMMARY_NAME)) | _exact(run)
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


def _exact(run: RunFolder) -> dict[str, float | None]:
    answers = run.read(ANSWERS_NAME)
    if answers is None:
        return {}
    groups = {"exact_in": answers["in_domain"], "exact_out": answers["out_of_domain"]}
    return {key: group["macro"]["value"] if group else None for key, group in groups.items()}


def write_comparison_page(folder: Path, out: Path | None = None) -> Path:
    """Write a comparison's page, with descriptions of its methods, and return its path. Raises ConfigError."""
    return write_comparison(folder, out=out, descriptions={name: method.what for name, method in METHODS.items()})
