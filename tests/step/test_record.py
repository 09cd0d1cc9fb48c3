from __future__ import annotations

from pathlib import Path

from colm.step.record import StepLog, from_dict, read_records, to_dict
from colm.types import NoiseScale, StepRecord


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


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    weighed = record(1)._replace(weights={"a": [0.5], "b": [0.5]}, match=0.75, step_seconds=1.5)
    measured = record(2)._replace(noise=NoiseScale(8, 12.5, {"a": 3.0}))
    not_clear = record(3)._replace(noise=NoiseScale(8, None, {}))
    log = StepLog(tmp_path / "selection.jsonl")
    for each in (record(0), weighed, measured, not_clear):
        log.write(to_dict(each))
    assert list(read_records(log.path)) == [record(0), weighed, measured, not_clear]
    older = {key: value for key, value in to_dict(record(0)).items() if key in ("step", "seconds", "pool", "kept")}
    assert from_dict(older) == record(0)._replace(tokens={}, small_kept=0)
