"""A probe computes as the run that it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.commands import write_run

from colm import SelectionConfig
from colm.lab.probe.workbench import Workbench
from colm.lab.run.settings import load_settings


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`(is_|)gradient_checkpointing:FutureWarning")
def test_in_the_number_format_and_with_the_checkpoints_of_the_run(tmp_path: Path) -> None:
    training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 6, "use_cpu": True}
    config = write_run(tmp_path, training={**training, "bf16": True, "gradient_checkpointing": True})
    bench = Workbench(load_settings(config, []))
    seen: list[torch.dtype] = []

    def note(module: Any, args: Any, output: torch.Tensor) -> None:
        if output.shape[1] > 1:  # one token shows where the values are
            seen.append(output.dtype)

    bench.model.model.layers[0].self_attn.v_proj.register_forward_hook(note)
    bench.step([0, 1])
    assert seen == [torch.bfloat16] * 4  # two micro-batches, each again in the backward
    seen.clear()
    bench.gradients([2])
    bench.choose(SelectionConfig(keep_count=2, small_sources="none"), [[0, 1, 2, 3]])
    assert set(seen) == {torch.bfloat16}
    assert {weight.dtype for weight in bench.model.parameters()} == {torch.float32}
