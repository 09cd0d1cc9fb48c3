"""Odd values in every key of every section."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from peft import LoraConfig
from transformers import TrainingArguments

from colm.config import SelectionConfig
from colm.lab.data.settings import DataSettings

ODD: list[Any] = [
    *(None, "", "abc", "no", "1e-5", "nan", "1_0", "{", '{"a": 1}', "/nonexistent", "a" * 300, "\0", "ü\n"),
    *(-1, 0, 1, 2, 1.5, -0.5, 10**20, 10**400, 1e20, math.nan, math.inf, -math.inf, True, False),
    *([], [1], ["abc"], [None], [[]], (1,), {1}, b"x"),
    *({}, {"a": 1}, {"a": None}, {"a": "b"}, {"a": [1]}, {"a": {}}, {1: [2]}, {None: None}),
]
FIELDS = {
    "training": [field.name for field in fields(TrainingArguments) if field.init],
    "lora": [field.name for field in fields(LoraConfig) if field.init],
    "selection": [*(field.name for field in fields(SelectionConfig)), "preset"],
    "data": [field.name for field in fields(DataSettings)],
    "sources": ["cluster", "map", "split", "merge_below", "merged", "labels"],
}


def changes(section: str) -> Iterator[dict[str, Any]]:
    """Yield what stands in the section, odd values in each of its keys, and a level below."""
    for odd in ODD:
        yield {section: odd}
        for name in FIELDS[section]:
            beside = {"train": "a.jsonl"} if section == "data" else {}
            yield {section: {**beside, name: odd}}
            yield {section: {**beside, name: {"x": odd}}}
            yield {section: {**beside, name: [odd]}}
    for key in (None, 5, 1.5, True, ("a",), "", "x"):
        yield {section: {key: 1}}
