"""Started by torchrun in test_sharding.py: trains a model sharded by FSDP2 in a plain loop, and saves gradients."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.models import ragged_batch, tiny_model
from tests.support.pools import LENGTHS, SIZES, SOURCES

from colm import CoresetSelector, SelectionConfig, example_mean
from colm.step.ranks import leave_ranks

POLICIES = {
    "float32": MixedPrecisionPolicy(),
    "bfloat16": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
}
CASES = {
    "full": {"lora": False, "features": "exact"},
    "lora": {"lora": True, "features": "exact"},
    "spsa": {"lora": False, "features": "spsa"},
    "head": {"lora": False, "features": "exact"},  # sharded separately
}
ROWS = {  # of each rank: with two, one has fewer rows of big sources, and so fewer forwards in the selection pass
    1: [list(range(16))],
    2: [[0, 1, 2, 3, 4, 5, 7, 8, 13, 14], [6, 9, 10, 11, 12, 15]],
}


def shard(model: Any, policy: MixedPrecisionPolicy, *, head: bool) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    parts = [*inner.model.layers, *([inner.lm_head] if head else []), model]
    for part in parts:
        fully_shard(part, mesh=mesh, mp_policy=policy)


def micro_batches(step: int, rows: list[int]) -> list[dict[str, Any]]:
    whole = ragged_batch(LENGTHS, seed=step)
    half = len(rows) // 2
    return [{key: value[part] for key, value in whole.items()} for part in (rows[:half], rows[half:])]


def train(case: str, policy: str | None, kept: list[list[int]] | None = None) -> Iterator[dict[str, Any]]:
    """Yield each step's kept rows, match and gradient; trains without selection where the kept rows are given."""
    rank, world = dist.get_rank(), dist.get_world_size()
    model = tiny_model("llama", lora=CASES[case]["lora"])
    if CASES[case]["lora"]:
        model.peft_config["default"].lora_dropout = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    if policy is not None:
        shard(model, POLICIES[policy], head=case == "head")
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    config = SelectionConfig(keep_count=8, features=CASES[case]["features"], pass_tokens=18)
    selector = CoresetSelector(model, config, SIZES, optimizer=optimizer)
    rows = ROWS[world][rank]
    for step in (0, 1):
        if kept is None:
            batches = micro_batches(step, rows)
            coreset = selector.select(batches, [SOURCES[i] for i in rows], dataset_index=rows)
            batches = selector.take(batches, coreset)
        else:
            batches = micro_batches(step, kept[step][rank::world])
        for batch in batches:
            labels = batch.pop("labels")
            (example_mean(model(**batch).logits, labels, num_examples=8) * world).backward()
        found = [p.grad for p in model.parameters() if p.grad is not None]
        whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in found]
        optimizer.step()
        optimizer.zero_grad()
        result: dict[str, Any] = {"gradient": torch.cat([g.flatten().float() for g in whole])}
        if kept is None:
            record = selector.commit()
            result |= {"kept": sorted(row for held in record.kept.values() for row in held), "match": record.match}
        yield result


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    policies = [None] if dist.get_world_size() == 1 else list(POLICIES)
    found: dict[Any, Any] = {}
    for case in CASES:
        for policy in policies:
            steps = list(train(case, policy))
            found[case, policy] = steps, list(train(case, policy, [step["kept"] for step in steps]))
    if dist.get_rank() == 0:
        torch.save(found, folder / "found.pt")
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
