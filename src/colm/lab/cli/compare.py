"""`colm compare`: several methods and seeds on the same data, order and number of steps."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from colm.errors import ConfigError
from colm.lab.cli.console import make_console
from colm.lab.cli.report import write_comparison_page
from colm.lab.report.compare_page import PAGE_NAME
from colm.lab.report.page import check_page
from colm.lab.run.cadence import evaluate_often
from colm.lab.run.changes import refused_changes
from colm.lab.run.check import check_run
from colm.lab.run.clustering import LABELS_NAME
from colm.lab.run.folder import RunFolder
from colm.lab.run.recognize import is_recognized, is_settings_file
from colm.lab.run.settings import load_settings, resolve_settings
from colm.lab.run.yaml12 import write_yaml
from colm.lab.study.child import read_launcher, run_child, split_words
from colm.lab.study.finished import check_run_data, is_answered, read_asked, require_same
from colm.lab.study.methods import METHODS, method_settings
from colm.step.files import replace_file
from colm.step.record import ANSWERS_NAME, COMPARE_NAME, CONFIG_NAME, SUMMARY_NAME

DEFAULT_METHODS = ("random", "control", "random-n", "colm")


def compare_command(
    config: str,
    overrides: Sequence[str],
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    launcher: str,
    eval_data: Sequence[str] = (),
    eval_options: str = "",
) -> None:
    """Run what is missing from the comparison, then write `compare.json` and print its table.

    Args:
        config: configuration that all runs share.
        overrides: overrides of the configuration.
        methods: methods to compare.
        seeds: seeds of each method.
        launcher: command that starts a run's processes.
        eval_data: questions for each finished run, as ``colm eval --data``; empty for none.
        eval_options: further options of ``colm eval``, as on a command line.
    """
    start = read_launcher(launcher)
    if eval_options and not eval_data:
        raise ConfigError(f"--eval-options {eval_options!r} has no effect without --eval-data; give both, or neither.")
    runs = plan_runs(config, overrides, methods, seeds)
    if eval_data:
        asked = read_asked(eval_data, eval_options, next(iter(runs.values())))
    todo = [folder for folder in runs if not RunFolder(folder).finished]
    out = Path(load_settings(config, overrides).output_dir)
    check_places(out, todo)
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished.", flush=True)
    for number, folder in enumerate(todo, start=1):
        print(f"[{number}/{len(todo)}] {folder.relative_to(out)}", flush=True)
        run_one(folder, runs[folder], start)
        finished = {other: run for other in runs if (run := RunFolder(other)).finished}
        require_same({other: run.fingerprint() for other, run in finished.items()}, RunFolder(folder).fingerprint())
        if eval_data:
            answer_one(folder, eval_data, eval_options)
        write_comparison_json(out)
    for folder in runs if eval_data else ():
        if not is_answered(folder, asked):
            print(f"Answers of {folder.relative_to(out)}", flush=True)
            answer_one(folder, eval_data, eval_options)
    write_comparison_json(out)
    _print_table(RunFolder(out).read(COMPARE_NAME))
    print(f"Written to {write_comparison_page(out)}.")


def plan_runs(
    config: str, overrides: Sequence[str], methods: Sequence[str], seeds: Sequence[int]
) -> dict[Path, dict[str, Any]]:
    """Return the folder and settings of every run, checked before the first run starts.

    All runs of a seed see the data in the same order; all seeds share the held-out rows.

    Raises:
        ConfigError: an unknown method, no fixed number of steps, no validation data, or a folder that contains a run
            with other settings.
        DataError: a folder contains a run on other data.
    """
    base = load_settings(config, overrides)
    _check_base(base.values)
    values = dict(base.values)
    values["data"] = {**values["data"], "seed": base.data_seed}
    if (base.sources.cluster or base.sources.split) and base.sources.labels is None:  # clustered once, for all runs
        values["sources"] = {**values["sources"], "labels": str(base.output_dir / LABELS_NAME)}
    values["training"] = {**base.training, **evaluate_often(base.training)}
    runs: dict[Path, dict[str, Any]] = {}
    for seed in dict.fromkeys(seeds):
        if seed < 0:
            raise ConfigError(f"--seeds {seed}: a seed must be a whole number of at least 0.")
        for method in dict.fromkeys(methods):
            settings = method_settings(method, {**values, "seed": seed})
            settings["selection"]["seed"] = seed
            folder = base.output_dir / method / f"seed-{seed}"
            settings["output_dir"] = str(folder)
            resolved = resolve_settings(settings)
            check_run(resolved, whole=False)
            settings = resolved.values
            _check_folder(folder, settings)
            runs[folder] = settings
    check_run_data(base.output_dir, runs)
    return runs


def run_one(folder: Path, settings: Mapping[str, Any], start: Sequence[str]) -> None:
    """Train one run in its own process, from its last complete checkpoint if any.

    Raises:
        ConfigError: the process failed; its output is above.
        StoppedEarly: see `run_child`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _settings_path(folder)
    replace_file(path, write_yaml(dict(settings)))
    status = run_child([*start, "-m", "colm", "train", str(path), "--resume"], f"the training in {folder}")
    if status:
        raise ConfigError(
            f"The run {folder} failed with exit status {status}; see its output above. Run the same command again to "
            "continue."
        )


def check_places(out: Path, todo: Sequence[Path]) -> None:
    """Check that a comparison can write its files next to its runs.

    Args:
        out: the comparison's folder, created if missing.
        todo: folders of the runs still to train.

    Raises:
        ConfigError: the folder is not writable, or a foreign file has such a name.
    """
    RunFolder(out).prepare()
    check_page(out / PAGE_NAME)
    files = {out / COMPARE_NAME: is_recognized, **{_settings_path(folder): is_settings_file for folder in todo}}
    for path, is_own in files.items():
        if os.path.lexists(path) and not is_own(path):
            raise ConfigError(f"{path} was not written by colm. Move it, or choose another output_dir.")


def _settings_path(folder: Path) -> Path:
    return folder.with_suffix(".yaml")


def answer_one(folder: Path, data: Sequence[str], options: str) -> None:
    """Let a finished run answer questions in its own process.

    Raises:
        ConfigError: the process failed; its output is above.
        StoppedEarly: see `run_child`.
    """
    command = [
        sys.executable,
        "-m",
        "colm",
        "eval",
        str(folder),
        "--data",
        *data,
        *split_words("--eval-options", options),
    ]
    status = run_child(command, f"colm eval of {folder}")
    if status:
        raise ConfigError(
            f"colm eval of {folder} failed with exit status {status}; see its output above. Run the same command again "
            "to continue."
        )


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


def _check_base(values: Mapping[str, Any]) -> None:
    if values["training"].get("max_steps", -1) <= 0:
        raise ConfigError(
            "A comparison needs training.max_steps, so that all methods take the same number of steps; with epochs, "
            "a larger batch would take fewer."
        )
    data = values["data"]
    validates = data["validation"] or data["validation_rows"] or data["train"] == "demo"
    if not validates and not any(entry.get("validation") for entry in values["mixture"]):
        raise ConfigError("A comparison needs validation data: set data.validation, or data.validation_rows.")


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / CONFIG_NAME
    if not path.exists():
        return
    held = load_settings(str(path), []).values  # newer keys have their defaults
    changes = refused_changes(held, settings, same_length=True)
    if changes:
        differing = dict.fromkeys(key.partition(".")[0] for key, _, _ in changes)
        raise ConfigError(
            f"{folder} contains a run with other settings ({', '.join(differing)} differ); choose another output_dir, "
            "or delete that folder."
        )


def _print_table(comparison: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    from rich.table import Table

    table = Table(title="Mean over seeds")
    table.add_column("method", no_wrap=True)
    held_keys = {key for by_seed in comparison.values() for run in by_seed.values() for key in run}
    exact = [key for key in ("exact_in", "exact_out") if key in held_keys]
    shown = [key.replace("_", " ") for key in exact]
    for name in ("seeds", "macro", "micro", "small", "big", *shown, "s/step", "selection"):
        table.add_column(name, justify="right")

    def mean(runs: Sequence[Mapping[str, Any]], key: str) -> float | None:
        held = [run[key] for run in runs if run.get(key) is not None]
        return fmean(held) if held else None

    def show(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    for name, by_seed in comparison.items():
        runs = list(by_seed.values())
        steps, seconds = mean(runs, "steps"), mean(runs, "seconds")
        table.add_row(
            name,
            str(len(runs)),
            *(show(mean(runs, key), 4) for key in ("macro", "micro", "small", "big", *exact)),
            show(seconds / steps if seconds and steps else None, 3),
            f"{(mean(runs, 'selection_seconds') or 0.0) / seconds:.0%}" if seconds else "-",
        )
    make_console().print(table)
