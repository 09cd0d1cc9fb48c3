from __future__ import annotations

from pathlib import Path

from colm.step.record import StepLog, to_dict
from colm.types import StepRecord


def record(step: int) -> StepRecord:
    return StepRecord(step, {"a": [1, 2], "b": [3]}, {"a": [2], "b": [3]}, {"a": 7, "b": 9}, 1, 0, 0, 0.25)


def test_lines_persist_and_later_steps_are_dropped(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "selection.jsonl")
    for step in range(4):
        log.write(to_dict(record(step)))
    with log.path.open("a") as file:
        file.write('{"step": 4, "po')  # killed while writing
    assert [line["step"] for line in log.read()] == [0, 1, 2, 3]
    log.truncate(2)
    log.write(to_dict(record(2)))
    lines = list(log.read())
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert lines[0]["pool_count"] == 3
    assert lines[0]["kept"] == {"a": [2], "b": [3]}
    log.truncate(0)
    assert log.path.read_text() == ""
