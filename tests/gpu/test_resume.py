"""A run that is killed and resumed: identical to the bit with full determinism, and with the same rows without it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.gpu.support import DEVICE, tiny_model
from tests.gpu.training import STEPS, kept_rows, losses, make_trainer, selection_lines, weights

from colm import SelectionConfig

pytestmark = pytest.mark.gpu

KILLED = 3
"""The step after which the run is killed."""

SELECTIONS = {"colm": SelectionConfig(keep=0.5), "matched": SelectionConfig.from_dict({"preset": "matched"})}


def interrupt(folder: Path, selection: SelectionConfig, **changes: Any) -> tuple[Any, Any]:
    """Train a run without interruption, then again resumed after a kill at one of its steps, in a separate folder."""

    def make(name: str) -> Any:
        # With dropout, so that the state of the random generators matters.
        model = tiny_model(layers=2, attention_dropout=0.1, attn_implementation="eager")
        return make_trainer(
            folder / name, model=model, selection=selection, save_strategy="steps", save_steps=1, **changes
        )

    whole = make("whole")
    whole.train()
    kept = folder / "whole" / f"checkpoint-{KILLED}"
    shutil.copytree(kept, folder / "killed" / kept.name)
    lines = (folder / "whole" / "selection.jsonl").read_text().splitlines(keepends=True)
    # The kill came two steps later: one extra line, and half of another.
    (folder / "killed" / "selection.jsonl").write_text("".join(lines[: KILLED + 1]) + lines[KILLED + 1][:20])
    again = make("killed")
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(99)  # the state before a resume must not matter
    again.train(resume_from_checkpoint=True)
    assert whole.state.global_step == again.state.global_step == STEPS
    return whole, again


@pytest.mark.parametrize("name", SELECTIONS)
def test_with_full_determinism_to_the_bit(tmp_path: Path, name: str, measured: Callable[..., None]) -> None:
    whole, again = interrupt(tmp_path, SELECTIONS[name], full_determinism=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert selection_lines(tmp_path / "whole") == selection_lines(tmp_path / "killed")
    assert losses(again)[-STEPS + KILLED :] == losses(whole)[KILLED:]
    for a, b in zip(weights(whole), weights(again), strict=True):
        assert torch.equal(a, b)
    measured(last_loss=losses(again)[-1])


def test_without_it_the_same_rows_and_losses_to_rounding(tmp_path: Path, measured: Callable[..., None]) -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    whole, again = interrupt(tmp_path, SELECTIONS["colm"])
    assert kept_rows(tmp_path / "whole") == kept_rows(tmp_path / "killed")
    pairs = list(zip(losses(whole)[KILLED:], losses(again)[-STEPS + KILLED :], strict=True))
    error = max(abs(a - b) / a for a, b in pairs)
    measured(error_of_losses=error)
    # Atomic sums round otherwise in each run, and Adam makes a whole step of a gradient that is nearly 0.
    assert error < (1e-3 if DEVICE.type == "cuda" else 1e-9)
