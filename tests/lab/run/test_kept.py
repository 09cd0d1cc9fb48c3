from __future__ import annotations

from typing import Any

from colm.lab.run.kept import describe_kept
from colm.step.record import from_dict


class Words:
    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(map(str, ids))


def test_kept_often_is_meant_beside_the_source_and_small_sources_are_left_out() -> None:
    train = [{"input_ids": [i] * 200} for i in range(9)]
    lines: list[dict[str, Any]] = [
        {"pool": {"a": [0, 1], "b": [2, 3], "rare": [8]}, "kept": {"a": [0], "b": [2, 3], "rare": [8]}},
        {"pool": {"a": [0, 1], "b": [4]}, "kept": {"a": [0], "b": []}},
        {"pool": {"a": [5]}, "kept": {"a": [5]}},
    ]
    records = [from_dict({"step": step, "seconds": 0.5, **line}) for step, line in enumerate(lines)]
    found = describe_kept(records, ["rare"], train, Words(), count=2)
    # a keeps 3 of 5 visits, b 2 of 3: surplus 0.8 for row 0, 0.4 for row 5, 1/3 for rows 2 and 3.
    assert [(e["source"], e["index"], e["pooled"], e["kept"]) for e in found["most_kept"]] == [
        ("a", 0, 2, 2),
        ("a", 5, 1, 1),
    ]
    assert [(e["source"], e["index"], e["pooled"], e["kept"]) for e in found["least_kept"]] == [
        ("a", 1, 2, 0),
        ("b", 4, 1, 0),
    ]
    assert found["most_kept"][0]["text"].startswith("0 0 0")
    assert len(found["most_kept"][0]["text"]) == 300


def test_nothing_was_pooled() -> None:
    assert describe_kept([], [], [], Words()) == {"most_kept": [], "least_kept": []}
