"""A row with non-finite loss or features is dropped, and the picks among the others are as if it did not exist."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.gpu.support import DEVICE, VOCABULARY, on, ragged_batch, tiny_model, under_test

from colm import CoresetSelector, SelectionConfig

pytestmark = pytest.mark.gpu

LENGTHS = [9, 12, 7, 15, 6, 11, 14, 8, 10, 13, 16, 5]
BROKEN = [3, 8]
POISON = VOCABULARY - 1
"""A token that no row contains initially."""

CASES: dict[str, dict[str, Any]] = {
    "colm": {"keep_count": 5},
    "matched": {"preset": "matched", "keep_count": 5},
    "mean_hidden": {"features": "mean_hidden", "keep_count": 5},
    "loss": {"features": "loss", "pick": "largest", "keep_count": 5},
    "sample": {"pick": "sample", "keep_count": 5},
}


def run(
    settings: dict[str, Any], device: torch.device, value: float | None, *, bf16: bool = False
) -> tuple[list[list[int]], list[int], dict[str, Any]]:
    """Select in two steps from rows of which some have a token embedded as `value`; with None, these are excluded.

    They are excluded by removing their labels: a row without labels is not a candidate.
    """
    model = tiny_model(tie_word_embeddings=False)
    if value is not None:
        with torch.no_grad():
            model.get_input_embeddings().weight[POISON] = value
    model = model.to(device)
    selector = CoresetSelector(model, SelectionConfig.from_dict({"small_sources": "none", **settings}))
    rows, broken = [], []
    for step in range(2):
        batch = ragged_batch(LENGTHS, seed=step)
        for row in BROKEN:
            if value is None:
                batch["labels"][row] = -100
            else:
                batch["input_ids"][row, 1] = POISON
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            coreset = selector.select(on(device, batch), ["a", "b", "a"] * 4)
        rows.append(coreset.indices.tolist())
        broken.append(selector.commit().nonfinite)
    return rows, broken, selector.state_dict()


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("name", CASES)
def test_the_row_is_left_out_and_the_others_stay(name: str, value: float) -> None:
    settings = CASES[name]
    expected, counted, _ = run(settings, torch.device("cpu"), value)
    assert counted == [2, 2]
    with under_test() as device:
        found, broken, state = run(settings, device, value)
        without, none, _ = run(settings, device, None)
    assert found == expected
    assert broken == [2, 2]
    assert none == [0, 0]
    assert not any(set(BROKEN) & set(rows) for rows in found)
    if name != "sample":  # whose draws are of as many rows as there are
        assert found == without
    for key in ("m", "v", "carried"):
        assert state[key] is None or torch.isfinite(state[key]).all()


def test_in_bfloat16() -> None:
    found, broken, state = run(CASES["colm"], DEVICE, math.nan, bf16=True)
    assert broken == [2, 2]
    assert not any(set(BROKEN) & set(rows) for rows in found)
    assert torch.isfinite(state["m"]).all()
