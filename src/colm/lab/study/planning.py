"""The runs of a comparison: their folders and settings, checked before the first run starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from colm.errors import ConfigError
from colm.lab.report.comparison import RANDOM
from colm.lab.run.arguments import fill_training
from colm.lab.run.cadence import evaluate_often
from colm.lab.run.changes import refused_changes
from colm.lab.run.check import check_run, holds_out
from colm.lab.run.clustering import LABELS_NAME
from colm.lab.run.prepare import prepare_data
from colm.lab.run.settings import RunSettings, load_run_settings, load_settings, resolve_settings
from colm.lab.study.cost import Meter, steps_of_cost
from colm.lab.study.finished import check_run_data
from colm.lab.study.methods import method_settings
from colm.step.record import CONFIG_NAME

Equal = Literal["steps", "time"]

SEARCH = "rates"
"""The folder of the runs that find learning rates."""

SAME_COST = 0.02
"""A run whose cost is this near to the budget stays valid when a new version counts a little differently."""


def search_folder(out: Path, method: str, rate: float, seed: int) -> Path:
    """Return the folder of a run that tries a learning rate."""
    return out / SEARCH / method / f"{rate:g}" / f"seed-{seed}"


class Study:
    """The settings of a comparison's runs, and of the runs that find learning rates.

    All runs of a seed see the data in the same order; all seeds share the held-out rows.

    Args:
        config: a YAML file.
        overrides: see `load_settings`.
        equal: ``steps``, as many for each method as configured; or ``time``, as many as cost what ``random`` costs in
            the configured number, see `cost.Meter`. Evaluations are then as many for each method.

    Raises:
        ConfigError: no fixed number of steps, or no validation data.
    """

    def __init__(self, config: str, overrides: Sequence[str], *, equal: Equal = "steps") -> None:
        base = load_settings(config, overrides)
        _check_base(base)
        values = dict(base.values)
        values["data"] = {**values["data"], "seed": base.data_seed}
        if (base.sources.cluster or base.sources.split) and base.sources.labels is None:  # clustered once, for all runs
            values["sources"] = {**values["sources"], "labels": str(base.output_dir / LABELS_NAME)}
        values["training"] = {**base.training, **evaluate_often(base.training)}
        self.out = base.output_dir
        self.training = base.training
        self._values = values
        self._equal = equal
        self._steps: dict[str, int] = {}

    def plan(
        self,
        methods: Sequence[str],
        seeds: Sequence[int],
        rates: Mapping[str, float] | None = None,
        *,
        decided: bool = True,
    ) -> dict[Path, dict[str, Any]]:
        """Return the folder and settings of every run, checked before the first run starts.

        Args:
            methods: see `method_settings`.
            seeds: seeds of each method.
            rates: method -> learning rate, if it is not the configured one.
            decided: these are the settings to train with; else the rates are not known yet, and what the folders
                contain is not compared with them.

        Raises:
            ConfigError: an unknown method, or a folder that contains a run with other settings.
            DataError: a folder contains a run on other data.
        """
        runs = {}
        for seed in dict.fromkeys(seeds):
            for method in dict.fromkeys(methods):
                rate = (rates or {}).get(method)
                runs[self.out / method / f"seed-{seed}"] = self._settings(method, seed, rate)
        return self._check(runs, decided=decided)

    def plan_search(self, methods: Sequence[str], rates: Sequence[float], seed: int) -> dict[Path, dict[str, Any]]:
        """Return the folder and settings of a run of each method with each learning rate. Raises as `plan`."""
        return self._check(
            {
                search_folder(self.out, method, rate, seed): self._settings(method, seed, rate)
                for method in dict.fromkeys(methods)
                for rate in dict.fromkeys(rates)
            }
        )

    @property
    def operations(self) -> Callable[[Mapping[str, Any]], float] | None:
        """The counted cost of a run with these settings; None where methods take equal steps."""
        return self._meter.operations if self._equal == "time" else None

    def _settings(self, method: str, seed: int, rate: float | None) -> dict[str, Any]:
        if seed < 0:
            raise ConfigError(f"--seeds {seed}: a seed must be a whole number of at least 0.")
        values = self._values
        if self._equal == "time":
            if method not in self._steps:
                self._steps[method] = self._count_steps(method)
            values = with_steps(values, self._steps[method])
        settings = method_settings(method, {**values, "seed": seed})
        settings["selection"]["seed"] = seed
        if rate is not None:
            settings["training"]["learning_rate"] = rate
        return settings

    def _count_steps(self, method: str) -> int:
        steps = self._values["training"]["max_steps"]
        budget = self._meter.operations(method_settings(RANDOM, self._values))

        def cost(number: int) -> float:
            return self._meter.operations(method_settings(method, with_steps(self._values, number)))

        if cost(1) > budget:
            raise ConfigError(
                f"One step of the method {method!r} costs more than all {steps} steps of {RANDOM!r}; raise "
                "training.max_steps, or leave the method out."
            )
        counted = steps_of_cost(budget, cost, start=steps)
        return next((held for held in self._held_steps(method) if abs(cost(held) / budget - 1) <= SAME_COST), counted)

    def _held_steps(self, method: str) -> list[int]:
        """Return the numbers of steps of a method's runs in the folder."""
        folders = [*(self.out / method).glob("seed-*"), *(self.out / SEARCH / method).glob("*/seed-*")]
        started = [load_run_settings(folder) for folder in sorted(folders) if (folder / CONFIG_NAME).exists()]
        return [steps for settings in started if (steps := settings.training.get("max_steps", 0)) > 0]

    @cached_property
    def _meter(self) -> Meter:
        data = {**self._values["data"], "temperature": None, "weights": {}}
        settings = resolve_settings({**self._values, "data": data})
        return Meter(settings, prepare_data(settings))

    def _check(self, runs: dict[Path, dict[str, Any]], *, decided: bool = True) -> dict[Path, dict[str, Any]]:
        checked = {}
        for folder, settings in runs.items():
            settings["output_dir"] = str(folder)
            resolved = resolve_settings(settings)
            check_run(resolved, whole=False)
            if decided:
                _check_folder(folder, resolved.values)
            checked[folder] = resolved.values
        if decided:
            check_run_data(self.out, checked)
        return checked


def with_steps(values: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return the settings of a run of that many steps, with as many evaluations and checkpoints, and scaled schedules.

    Numbers of steps below 1 are shares of a run already.
    """
    training = dict(values["training"])
    if steps == training["max_steps"]:
        return dict(values)
    factor = steps / training["max_steps"]
    training["max_steps"] = steps
    filled = fill_training(training)
    evaluates = filled["eval_strategy"] == "steps"
    if evaluates and filled["eval_steps"] is None:  # as the Trainer fills it in
        filled["eval_steps"] = filled["logging_steps"]
    scaled = {"warmup_steps": True, "eval_steps": evaluates}
    scaled["save_steps"] = "save_steps" in training or filled["load_best_model_at_end"]

    def scale(number: float) -> float:
        return max(1, round(number * factor)) if number >= 1 else number

    for key, applies in scaled.items():
        if applies and filled[key]:
            training[key] = scale(filled[key])
    shape = training.get("lr_scheduler_kwargs")
    if isinstance(shape, dict):  # such as the decay of warmup_stable_decay
        training["lr_scheduler_kwargs"] = {k: scale(v) if k.endswith("_steps") else v for k, v in shape.items()}
    if filled["load_best_model_at_end"] and evaluates and training["eval_steps"] >= 1:
        every = training["eval_steps"]
        training["save_steps"] = every * max(1, round(training["save_steps"] / every))
    selection = dict(values.get("selection", {}))
    if selection.get("keep_schedule"):
        scaled_points = {scale(step): keep for step, keep in selection["keep_schedule"]}
        selection["keep_schedule"] = [list(point) for point in scaled_points.items()]
    if selection.get("warmup_steps"):
        selection["warmup_steps"] = scale(selection["warmup_steps"])
    return {**values, "training": training, "selection": selection}


def _check_base(base: RunSettings) -> None:
    if base.arguments["max_steps"] <= 0:
        raise ConfigError(
            "A comparison needs training.max_steps, the number of steps of each method or of its budget; with epochs, "
            "a larger batch would take fewer."
        )
    if not holds_out(base):
        raise ConfigError("A comparison needs validation data: set data.validation, or data.validation_rows.")


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    path = folder / CONFIG_NAME
    if not path.exists():
        return
    held = load_run_settings(folder).values
    changes = refused_changes(held, settings, same_length=True)
    if changes:
        differing = "; ".join(f"{key}: {before!r} -> {now!r}" for key, before, now in changes)
        raise ConfigError(
            f"{folder} contains a run with other settings ({differing}); choose another output_dir, or delete that "
            "folder."
        )
