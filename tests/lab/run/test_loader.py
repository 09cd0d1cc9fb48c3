"""Defaults of the data loader: a worker on a GPU, unless that changes what a stream may hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from colm.lab.run.loader import loader_defaults
from colm.lab.run.settings import resolve_settings
from colm.trainers.evaluation import peak_memory

STREAM = {"train": "a.jsonl", "streaming": True}
COPIED = {"accelerator_config": {"non_blocking": True}}


@pytest.mark.parametrize(
    ("data", "training", "expected"),
    [
        ({"train": "demo"}, {}, {"dataloader_num_workers": 1, **COPIED}),
        ({"train": "demo"}, {"dataloader_pin_memory": False}, {"dataloader_num_workers": 1}),
        ({"train": "demo"}, {"use_cpu": True}, {}),
        (STREAM, {"max_steps": 3}, COPIED),
        ({**STREAM, "source_sizes": {"a": 3}}, {"max_steps": 3}, {"dataloader_num_workers": 1, **COPIED}),
    ],
    ids=str,
)
def test_on_a_gpu(
    data: dict[str, Any], training: dict[str, Any], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"model": "tiny", "output_dir": "out", "data": data, "training": {"use_cpu": False, **training}}
    values["training"].setdefault("dataloader_pin_memory", True)
    settings = resolve_settings(values)
    assert loader_defaults(settings) == {}  # on this machine
    assert "dataloader_num_workers" not in settings.training
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loader_defaults(settings) == expected


def test_on_a_gpu_machine_a_training_on_the_cpu_has_the_memory_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert peak_memory()["memory_kind"] == "process"
