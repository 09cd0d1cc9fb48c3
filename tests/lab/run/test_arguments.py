"""What is known of `training` without transformers agrees with transformers."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from transformers.trainer_utils import SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames

from colm import SelectionConfig
from colm.errors import ConfigError
from colm.hints import hints_of
from colm.lab.data.settings import DataSettings
from colm.lab.run import arguments, declared
from colm.lab.run.arguments import check_early, lora_hints, training_hints
from colm.lab.run.declared import lora_fields, training_fields


def test_what_is_known_early_agrees_with_the_full_reading() -> None:
    for known, hints in ((training_fields(), training_hints()), (lora_fields(), lora_hints())):
        assert set(known) == set(hints)
    enums = {"optim": OptimizerNames, "lr_scheduler_type": SchedulerType, "save_strategy": SaveStrategy}
    for name, enum in enums.items():
        assert get_args(training_fields()[name]) == tuple(each.value for each in enum)
    check_early(dict.fromkeys({*training_fields()} - {*arguments.OWNED}), dict.fromkeys(lora_fields()))


@pytest.mark.parametrize(
    ("training", "lora", "message"),
    [
        ({"optim": "adamm"}, None, r"training.optim='adamm' is not one of 'adamw_torch', .*Did you mean"),
        ({"save_strategy": "step"}, None, r"training.save_strategy='step' is not one of .* Did you mean 'steps'\?"),
        ({"bf16": "maybe"}, None, r"training.bf16='maybe' must be true or false"),
        (None, {"rr": 1}, r"Unknown setting 'rr' in lora \(the fields of peft.LoraConfig\)"),
        (None, {"use_rslora": "x"}, r"lora.use_rslora='x' must be true or false"),
    ],
)
def test_mistakes_are_reported_early(training: Any, lora: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_early(training, lora)


def test_arguments_of_others_are_named_with_what_takes_their_place() -> None:
    settings = {"training": training_fields(), "data": hints_of(DataSettings), "selection": hints_of(SelectionConfig)}
    for old, instead in arguments.MOVED.items():
        assert old not in training_fields()
        section, _, name = re.split("[ ,:]", instead)[0].partition(".")
        assert name in settings[section] if section in settings else section in ("output_dir", "colm")
        with pytest.raises(ConfigError, match=f"^training.{old} is not a field .*; use {re.escape(instead)}.$"):
            check_early({old: 1}, None)


@pytest.mark.parametrize(
    "source", [None, "", "class Base: ...\nclass TrainingArguments(Base):\n    max_steps: int = 1\n"]
)
def test_nothing_is_unknown_where_the_source_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | None
) -> None:
    found = None if source is None else SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(declared, "find_spec", lambda _: found)
    monkeypatch.setattr(arguments, "training_fields", training_fields.__wrapped__)
    monkeypatch.setattr(arguments, "lora_fields", lora_fields.__wrapped__)
    check_early({"anything": 1}, {"anything": 1})
    (tmp_path / "training_args.py").write_text(source or "")
    check_early({"anything": 1}, {"anything": 1})


def test_text_and_json_are_left_to_the_full_reading() -> None:
    check_early({"lr_scheduler_kwargs": '{"power": 2}', "max_steps": "7", "learning_rate": "1e-4"}, {"r": "8"})
    check_early({"max_steps": None, "eval_strategy": False}, None)
    check_early(3, "all")
    with pytest.raises(ConfigError, match=r"training.max_steps='-7' must be one of -1 or a whole number of at least 1"):
        check_early({"max_steps": "-7"}, None)
