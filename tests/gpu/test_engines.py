"""FSDP2 in one process, with NCCL on a GPU and gloo on a CPU: the picks and weights of the model that is not sharded.

With one process every shard is a whole weight, and a gather is a copy. So this shows whether NCCL, CUDA streams, casts
and offloading leave picks and weights as they are; ranks that wait for each other are tested on CPUs alone
(tests/trainers/test_engines.py). accelerate shards for one process, too: it looks for LOCAL_RANK and a GPU, and not for
the number of processes. torchrun sets that variable, and so does on_one_rank.py. ZeRO needs DeepSpeed, which the GPU
machine does not have.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.gpu import on_one_rank
from tests.gpu.support import DEVICE, relative_error

pytestmark = pytest.mark.gpu

Found = dict[str, dict[str, Any]]
REFUSED = "does not work with FSDP2 and this release of transformers"
LONGEST = 110
"""Seconds, fewer than right.py waits for a test; starting takes most of them."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Return what on_one_rank.py found."""
    folder = tmp_path_factory.mktemp("engines")
    root = Path(__file__).parents[2]
    paths = [str(root / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    done = subprocess.run(
        [sys.executable, str(on_one_rank.__file__), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    print(done.stderr[-8000:])
    assert (folder / "found.pt").exists(), f"status {done.returncode}: {done.stderr.strip()[-2000:]}"
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(torch.load(folder / "found.pt"))


def take(found: Found, name: str) -> dict[str, Any]:
    """Return what a case found.

    Raises:
        AssertionError: it failed.
    """
    if "skipped" in found[name]:
        pytest.skip(found[name]["skipped"])
    if REFUSED in found[name].get("error", ""):
        pytest.skip(found[name]["error"])
    assert "error" not in found[name], f"{name}: {found[name]['error']}"
    return found[name]


def joined(weights: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in weights])


@pytest.mark.parametrize(
    ("name", "other"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("reuse", "float32"), ("offload", "float32")],
    ids=["float32", "mixed precision", "reuse_forward", "offloaded to the CPU"],
)
def test_fsdp2_selects_and_trains_as_the_whole_model(
    found: Found, name: str, other: str, measured: Callable[..., None]
) -> None:
    ours, theirs = take(found, name), take(found, f"{other}, whole")
    before, trained = joined(theirs["before"]), joined(theirs["weights"])
    assert float((trained - before).norm()) > 1e-2  # otherwise any weights would be near
    error = float((joined(ours["weights"]) - trained).norm() / (trained - before).norm())
    of_features = relative_error(ours["features"], theirs["features"])
    measured(error_of_the_change=error, error_of_features=of_features)
    assert ours["rows"] == theirs["rows"]
    assert not ours["warnings"]  # such as that reuse_forward saved nothing
    # The same kernels on the same numbers, but for the products of other shapes with reuse_forward, and the step on the
    # CPU with offloading; a GPU's atomic sums may round otherwise in each run.
    assert of_features < 1e-5
    assert error < (1e-4 if DEVICE.type == "cpu" or name != "bfloat16" else 1e-2)


def test_the_trainer_with_accelerate_s_fsdp2(found: Found, measured: Callable[..., None]) -> None:
    ours, theirs = take(found, "trainer"), take(found, "trainer, whole")
    assert ours["type"].endswith("FSDP")
    assert not theirs["type"].endswith("FSDP")
    assert ours["rows"] == theirs["rows"]
    error = relative_error(joined(ours["weights"]), joined(theirs["weights"]))
    measured(error_of_weights=error, last_loss=ours["losses"][-1])
    assert error < 1e-4
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-3)
