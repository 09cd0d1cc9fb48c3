"""Answers scored by their reasoning-gym task, since more than one answer may be correct."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from colm.errors import DataError
from colm.lab.answers.extract import extract_marked
from colm.lab.answers.reasoning import without_reasoning

COLUMN = "reasoning_gym"
"""The column with a task: ``dataset``, ``question``, ``answer`` and ``metadata``, as JSON text or a mapping.

JSON text, because all rows of a data set share one type per column, while metadata differs between tasks.
"""


def write_task(name: str, task: Mapping[str, Any]) -> str:
    """Return a task of the reasoning-gym data set `name` as a cell of `COLUMN`."""
    held = {"dataset": name, **{key: task[key] for key in ("question", "answer", "metadata")}}
    return json.dumps(held, default=str)


def read_task(cell: Any) -> dict[str, Any] | None:
    """Return the task in a cell of `COLUMN`, or None for an empty one.

    Raises:
        DataError: the cell is neither JSON nor a mapping, or lacks a key.

    >>> read_task('{"dataset": "chain_sum", "question": "1 + 1 =", "answer": "2", "metadata": {}}')["answer"]
    '2'
    """
    if cell is None or cell == "":
        return None
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except json.JSONDecodeError as error:
            raise DataError(f"A cell of {COLUMN!r} is not JSON ({error}): {cell[:80]!r}.") from error
    needed = ("dataset", "answer", "metadata")
    if not isinstance(cell, Mapping) or any(cell.get(key) is None for key in needed):
        raise DataError(
            f"A cell of {COLUMN!r} must be a mapping with {', '.join(needed)}, as reasoning_gym.create_dataset gives "
            f"them; it is {str(cell)[:80]!r}."
        )
    return dict(cell)


def task_accepts(task: Mapping[str, Any], completion: str) -> bool:
    """Return whether the task's own scorer gives the answer in the completion the full score of 1.

    The scorer gets the text after the last answer marker, or the whole completion if there is no marker.

    Raises:
        DataError: reasoning-gym is not installed, or has no such data set.
    """
    completion = without_reasoning(completion)
    answer = extract_marked(completion) or completion.strip()
    try:
        return float(_scorer(str(task["dataset"]))(answer, task)) >= 1.0
    except DataError:
        raise
    except Exception:  # scorers parse model output, and do not handle everything that models write
        return False


@cache
def _scorer(name: str) -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise DataError(
            f"Rows with {COLUMN!r} are scored by reasoning-gym: pip install reasoning-gym, or leave that column out."
        ) from error
    try:
        return reasoning_gym.get_score_answer_fn(name)
    except ValueError as error:
        raise DataError(f"reasoning-gym has no data set {name!r} ({error}).") from error
