"""FSDP2 in two gloo processes, in a plain loop: the picks and gradients of one process that holds the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support import shard_on_ranks
from tests.support.processes import run_to_end, torchrun
from tests.support.shard_on_ranks import CASES, POLICIES

SCRIPT = Path(shard_on_ranks.__file__)
ROUNDING = {"float32": 1e-6, "bfloat16": 2e-2}
"""Tolerance relative to the norm, compared with gradients of unsharded float32 weights."""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    found = {}
    for world in (1, 2):
        folder = tmp_path_factory.mktemp(f"world{world}")
        run_to_end([*torchrun(world), str(SCRIPT), str(folder)], seconds=300)
        found[world] = torch.load(folder / "found.pt")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "policy"),
    # SPSA's differences of two bfloat16 losses are mostly rounding noise, and pick other rows.
    [(case, policy) for case in CASES for policy in POLICIES if (case, policy) != ("spsa", "bfloat16")],
)
def test_shards_select_and_train_as_the_whole_model(worlds: dict[int, Any], case: str, policy: str) -> None:
    (whole, _), (sharded, without) = worlds[1][case, None], worlds[2][case, policy]
    for ours, theirs, plain in zip(whole, sharded, without, strict=True):
        assert theirs["kept"] == ours["kept"]
        assert theirs["match"] == pytest.approx(ours["match"], rel=1e-3 if policy == "float32" else 0.05)
        for other in (ours, plain):
            distance = (theirs["gradient"] - other["gradient"]).norm() / other["gradient"].norm()
            assert float(distance) < ROUNDING[policy]
