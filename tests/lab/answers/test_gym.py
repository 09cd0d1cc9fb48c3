from __future__ import annotations

import sys

import pytest
import reasoning_gym

from colm.errors import DataError
from colm.lab.answers import gym
from colm.lab.data.demo import SHARES


@pytest.mark.parametrize("name", SHARES)
def test_every_task_of_the_demo_accepts_its_own_answer(name: str) -> None:
    for entry in reasoning_gym.create_dataset(name, size=3, seed=1):
        task = gym.read_task(gym.write_task(name, entry))
        assert task is not None
        assert gym.task_accepts(task, f"Let us see.\nThe answer is {entry['answer']}.")
        assert gym.task_accepts(task, f" {entry['answer']}\n")
        assert not gym.task_accepts(task, "The answer is -12345.")
        assert not gym.task_accepts(task, "")


def test_cells() -> None:
    assert gym.read_task(None) is None
    assert gym.read_task("") is None
    held = {"dataset": "chain_sum", "question": "1 + 1 =", "answer": "2", "metadata": {"a": 1}}
    assert gym.read_task(held) == held
    with pytest.raises(DataError, match="is not JSON"):
        gym.read_task("{")
    for cell in ("[1]", {"dataset": "chain_sum"}):
        with pytest.raises(DataError, match="must be a mapping with dataset, answer, metadata"):
            gym.read_task(cell)


def test_unscorable_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="has no data set 'no_such_task'"):
        gym.task_accepts({"dataset": "no_such_task", "answer": "1", "metadata": {}}, "1")
    assert not gym.task_accepts({"dataset": "calendar_arithmetic", "answer": "1", "metadata": {}}, "1")  # no task in it
    gym._scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError, match="pip install reasoning-gym"):
        gym.task_accepts({"dataset": "chain_sum", "answer": "1", "metadata": {}}, "1")
