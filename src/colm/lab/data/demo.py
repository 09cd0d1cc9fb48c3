"""The demo's mixture: verifiable tasks that the reasoning-gym package generates."""

from __future__ import annotations

import re
from typing import Any

from datasets import Dataset

from colm.errors import DataError
from colm.lab.answers.gym import COLUMN, write_task

SHARES = {
    "gsm_symbolic": 0.45,
    "chain_sum": 0.16,
    "simple_equations": 0.14,
    "calendar_arithmetic": 0.10,
    "leg_counting": 0.05,
    "spell_backward": 0.035,
    "family_relationships": 0.025,
    "count_bits": 0.02,
    "syllogism": 0.02,
}
"""Sources and their shares of the training rows. Nine sources, so the uniform share is 11% and six are small."""

_EVERYTHING_AFTER_ANSWER = re.compile(r"\s*####\s*(.+)\s*$")


def demo_rows(rows: int, seed: int, *, held_out: int = 0) -> Dataset:
    """Generate the mixture, or its held-out split.

    Args:
        rows: total training rows, at least 100; ignored for a held-out split.
        seed: seed of the generators.
        held_out: if above 0, generate this many rows per source, from a seed that training does not use.

    Returns:
        Columns ``source``, ``prompt``, ``completion``, and ``reasoning_gym``, which the task's scorer needs.

    Raises:
        DataError: reasoning-gym is not installed, or `rows` is too few for the smallest source.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise DataError("The demo data needs reasoning-gym: pip install reasoning-gym") from error
    if rows < 100:
        raise DataError(f"The demo mixture needs at least 100 rows so that every source has some; got {rows}.")
    mixture: list[dict[str, str]] = []
    for name, share in SHARES.items():
        size = held_out or round(rows * share)
        # Seeds are far apart, so held-out rows never share a training seed.
        tasks = reasoning_gym.create_dataset(name, size=size, seed=seed + (1_000_000 if held_out else 0))
        mixture += [_row(name, task) for task in tasks]
    return Dataset.from_list(mixture)


def _row(name: str, task: dict[str, Any]) -> dict[str, str]:
    solution = str(task["answer"])
    if name == "gsm_symbolic":  # the worked solution, with the last line that scorers expect
        worked = task["metadata"]["answer_cot"].removeprefix("Let's solve this step by step:").strip()
        solution = _EVERYTHING_AFTER_ANSWER.sub("", worked) + f"\nThe answer is {task['answer']}."
    prompt = task["question"].strip() + "\n"
    return {"source": name, "prompt": prompt, "completion": solution, COLUMN: write_task(name, task)}
