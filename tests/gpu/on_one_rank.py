"""Started by test_engines.py: trains with whole and with sharded weights in one process, and saves what both found.

python on_one_rank.py FOLDER

A process of its own, since a process group and accelerate's state would stay with the other tests.
"""

from __future__ import annotations

import logging.handlers
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, DistributedType, PartialState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.gpu.support import DEVICE, SIZES, on, pool_of, tiny_model
from tests.gpu.training import kept_rows, losses, make_trainer

from colm import CoresetSelector, SelectionConfig, example_mean
from colm.features.exact import value_gradients

STEPS = 3
ON_CPU = "FSDP2 offloads to a CPU only from an accelerator"
CHECKPOINTED = {"use_reentrant": False}
FSDP2: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2}}
FOUND: dict[str, Any] = {"accelerator_config": {"use_configured_state": True}}
"""Training arguments; with the second, accelerate takes the state of `start_group`, as it does by itself on GPUs."""

SHARDED: dict[str, dict[str, bool]] = {
    "float32": {},
    "bfloat16": {"bf16": True},
    "reuse": {"reuse": True},
    "offload": {"offload": True},
}
"""Settings of `train_loop`."""


class Masters:
    """What FSDP2 does in mixed precision, written out: float32 weights, and a copy in bfloat16 that is trained."""

    def __init__(self, model: Any) -> None:
        self._copies = list(model.parameters())
        self.weights = [torch.nn.Parameter(copy.detach().clone()) for copy in self._copies]
        for copy in self._copies:
            copy.data = copy.data.bfloat16()  # not model.to, which rounds rotary frequencies, too

    def take_gradients(self) -> None:
        """Add the copies' gradients, those of one micro-batch, in float32."""
        for copy, weight in zip(self._copies, self.weights, strict=True):
            assert copy.grad is not None
            found = copy.grad.float()
            weight.grad = found if weight.grad is None else weight.grad + found
            copy.grad = None

    @torch.no_grad()
    def put_back(self) -> None:
        """Copy the weights after a step."""
        for copy, weight in zip(self._copies, self.weights, strict=True):
            copy.copy_(weight)


def shard(model: Any, *, bf16: bool, offload: bool) -> None:
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    more = {"offload_policy": CPUOffloadPolicy()} if offload else {}
    mesh = init_device_mesh(DEVICE.type, (1,))
    for part in (*model.model.layers, model):
        fully_shard(part, mesh=mesh, mp_policy=policy, **more)


def train_loop(*, sharded: bool, bf16: bool = False, reuse: bool = False, offload: bool = False) -> dict[str, Any]:
    """Train some steps in a plain loop, and return features before it, the rows of each step, and the last weights."""
    model = tiny_model().train()
    if reuse:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTED)
    if not offload:
        model.to(DEVICE)
    masters = Masters(model) if bf16 and not sharded else None
    before = [weight.detach().float().cpu().clone() for weight in model.parameters()]
    if sharded:
        shard(model, bf16=bf16, offload=offload)
        assert all(isinstance(weight, DTensor) for weight in model.parameters())
    trained = list(model.parameters()) if masters is None else masters.weights
    # Without Adam, which makes a whole step, and other picks, of the rounding of a gradient that is nearly 0.
    optimizer = torch.optim.SGD(trained, lr=0.02)
    config = SelectionConfig(adam=False, coordinates=100, reuse_forward=reuse)
    selector = CoresetSelector(model, config, SIZES)
    features = value_gradients(model, on(DEVICE, pool_of(0)[0][0]))
    told = logging.handlers.BufferingHandler(100)
    logging.getLogger("colm").addHandler(told)
    rows = []
    for step in range(STEPS):
        batches, sources = pool_of(step)
        pool = on(DEVICE, batches)
        coreset = selector.select(pool, sources)
        for batch in selector.take(pool, coreset):
            inputs = {key: value for key, value in batch.items() if key != "labels"}
            logits = model(**inputs, use_cache=False).logits
            example_mean(logits, batch["labels"], num_examples=len(coreset.indices)).backward()
            if masters is not None:
                masters.take_gradients()
        optimizer.step()
        optimizer.zero_grad()
        if masters is not None:
            masters.put_back()
        selector.commit()
        rows.append(coreset.indices.tolist())
    logging.getLogger("colm").removeHandler(told)
    warnings = [record.getMessage() for record in told.buffer if record.levelno >= logging.WARNING]
    return {
        "features": features.cpu(),
        "rows": rows,
        "before": before,
        "weights": whole(trained),
        "warnings": warnings,
    }


def whole(weights: list[Any]) -> list[torch.Tensor]:
    """Return weights on the CPU; one rank holds all of each, so nothing is gathered."""
    found = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in weights]
    return [weight.detach().float().cpu().clone() for weight in found]


def train_with_trainer(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the rows, losses and last weights of `CoresetTrainer`, and what accelerate calls its processes."""
    trainer = make_trainer(folder, max_grad_norm=0.0, **changes)
    trainer.train()
    return {
        "rows": kept_rows(folder),
        "losses": losses(trainer),
        "weights": whole(list(trainer.model.parameters())),
        "type": str(trainer.accelerator.distributed_type),
    }


def start_group(folder: Path) -> None:
    """Start a process group of one, and let accelerate find it; see test_engines.py."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it was one of a process without a group
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        os.environ.setdefault(variable, "lo")  # the machine may have no other network
    backend, device = ("nccl", torch.device("cuda", 0)) if DEVICE.type == "cuda" else ("gloo", None)
    store = f"file://{(folder / 'store').resolve()}"
    dist.init_process_group(backend, init_method=store, rank=0, world_size=1, device_id=device)
    if DEVICE.type == "cpu":
        PartialState(cpu=True).distributed_type = DistributedType.MULTI_XPU  # on MULTI_CPU, FSDP is dropped in silence


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {}

    def note(name: str, action: Callable[..., Any], *given: Any, **settings: Any) -> None:
        try:
            found[name] = action(*given, **settings)
        except Exception as error:  # the tests show which cases fail
            traceback.print_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}"}

    note("trainer, whole", train_with_trainer, folder / "whole")
    for name in ("float32", "bfloat16"):
        note(f"{name}, whole", train_loop, sharded=False, **SHARDED[name])
    start_group(folder)
    for name, settings in SHARDED.items():
        if name == "offload" and DEVICE.type == "cpu":
            found[name] = {"skipped": ON_CPU}
        else:
            note(name, train_loop, sharded=True, **settings)
    note("trainer", train_with_trainer, folder / "sharded", **(FSDP2 if DEVICE.type == "cuda" else FSDP2 | FOUND))
    torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
