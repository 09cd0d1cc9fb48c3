"""What is known of `training` without transformers agrees with transformers."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainingArguments

from colm.errors import ConfigError
from colm.lab.run import arguments
from colm.lab.run.arguments import check_early


def test_the_declared_fields_are_the_fields() -> None:
    declared = arguments._declared_fields()
    assert {field.name for field in fields(TrainingArguments)} <= set(declared)
    check_early(dict.fromkeys({*declared} - {*arguments.OWNED}), None)


@pytest.mark.parametrize(
    "source", [None, "", "class Base: ...\nclass TrainingArguments(Base):\n    max_steps: int = 1\n"]
)
def test_nothing_is_unknown_where_the_source_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | None
) -> None:
    found = None if source is None else SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(arguments, "find_spec", lambda _: found)
    monkeypatch.setattr(arguments, "_declared_fields", arguments._declared_fields.__wrapped__)
    check_early({"anything": 1}, None)
    (tmp_path / "training_args.py").write_text(source or "")
    check_early({"anything": 1}, None)


def test_text_and_json_are_left_to_the_full_reading() -> None:
    check_early({"lr_scheduler_kwargs": '{"power": 2}', "max_steps": "7", "learning_rate": "1e-4"}, {"r": "8"})
    check_early({"max_steps": None, "eval_strategy": False}, None)
    check_early(3, "all")
    with pytest.raises(ConfigError, match=r"training.max_steps='-7' must be one of -1 or a whole number of at least 1"):
        check_early({"max_steps": "-7"}, None)
