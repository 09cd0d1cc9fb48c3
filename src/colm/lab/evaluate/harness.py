"""Run lm-evaluation-harness tasks on a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from colm.errors import ConfigError

Scores = dict[str, dict[str, dict[str, Any]]]
"""Task -> metric and filter -> ``value`` and ``stderr``, which may be None."""


def run_harness(
    model: Any, tokenizer: Any, tasks: Sequence[str], *, batch_size: int, limit: int | None = None, seed: int = 0
) -> Scores:
    """Return the results of lm-evaluation-harness, which fetches task data from the hub.

    Args:
        model: a causal LM of transformers, or a PEFT model of one.
        tokenizer: the model's tokenizer.
        tasks: task names, as listed by ``lm_eval ls tasks``.
        batch_size: rows per batch.
        limit: rows per task; None for all.
        seed: random seed of few-shot examples and sampling.

    Raises:
        ConfigError: lm-eval is not installed, has no such task, or cannot fetch the task's data.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ConfigError(
            f"--tasks needs lm-evaluation-harness ({error}): pip install 'colm[harness]', or leave --tasks out."
        ) from error
    try:
        found = lm_eval.simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks),
            limit=limit,
            bootstrap_iters=0 if limit is not None and limit < 2 else 1000,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except (KeyError, ValueError, OSError) as error:
        raise ConfigError(
            f"lm-evaluation-harness could not run {', '.join(tasks)} ({type(error).__name__}: {error}). List its tasks "
            "with: lm_eval ls tasks. Their data comes from the hub, which must be reachable or cached."
        ) from error
    return {task: _metrics(held) for task, held in found["results"].items()}


def _metrics(held: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the numbers among a task's results, whose keys are ``metric,filter`` and ``metric_stderr,filter``."""
    figures = {}
    for key, value in held.items():
        metric, _, kept = key.partition(",")
        if metric.endswith("_stderr") or isinstance(value, bool) or not isinstance(value, int | float) or not kept:
            continue
        error = held.get(f"{metric}_stderr,{kept}")
        figures[key] = {"value": float(value), "stderr": float(error) if isinstance(error, int | float) else None}
    return figures
