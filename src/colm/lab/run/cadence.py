"""When a run evaluates, if its configuration does not say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from colm.lab.run.folder import RunFolder
from colm.lab.run.settings import RunSettings

EVALUATIONS = 10
KEYS = ("eval_strategy", "eval_steps")


def evaluate_often(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that make a run evaluate about ten times; empty if `training` says when to evaluate.

    With epochs, the Trainer computes the steps from a share of the run.

    >>> evaluate_often({"max_steps": 250})
    {'eval_strategy': 'steps', 'eval_steps': 25}
    >>> evaluate_often({"num_train_epochs": 3})
    {'eval_strategy': 'steps', 'eval_steps': 0.1}
    >>> evaluate_often({"eval_strategy": "no"})
    {}
    """
    if any(training.get(key) is not None for key in KEYS):
        return {}
    steps = training.get("max_steps", -1)
    return {"eval_strategy": "steps", "eval_steps": max(1, steps // EVALUATIONS) if steps > 0 else 1 / EVALUATIONS}


def settle_evaluation(settings: RunSettings, *, resumed: bool) -> RunSettings:
    """Return the settings of a run with validation data, including when it evaluates.

    A resumed run keeps its own times, since an evaluation changes the dropout draws; runs of older versions evaluated
    only at their ends.

    Raises:
        ConfigError: the settings in the run's folder cannot be read.
    """
    added = evaluate_often(settings.training)
    if added and resumed:
        held = RunFolder(settings.output_dir).config().get("training") or {}
        added = {key: held[key] for key in KEYS if held.get(key) is not None}
    return settings._replace(training={**settings.training, **added})
