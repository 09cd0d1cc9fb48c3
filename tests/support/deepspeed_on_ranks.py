"""Started by torchrun in test_engines.py: a plain loop of DistributedDataParallel, and of DeepSpeed's engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.engines_on_ranks import whole
from tests.support.models import tiny_model
from tests.support.pools import SIZES, SOURCES
from tests.support.shard_on_ranks import ROWS, micro_batches

from colm import CoresetSelector, SelectionConfig, example_mean
from colm.step.ranks import leave_ranks

KEPT = 8


def wrap(model: Any, optimizer: Any, stage: int | None) -> tuple[Any, Any]:
    if stage is None:
        return DistributedDataParallel(model), optimizer
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 0.0,  # 1 by default
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    import deepspeed  # only this program finds it

    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[:2]


def train(stage: int | None) -> dict[str, Any]:
    """Return each step's kept rows, and the weights at the end."""
    rank, world = dist.get_rank(), dist.get_world_size()
    model = tiny_model("llama")
    model, optimizer = wrap(model, torch.optim.AdamW(model.parameters(), lr=1e-3), stage)
    selector = CoresetSelector(model, SelectionConfig(keep_count=KEPT), SIZES, optimizer=optimizer)
    rows, kept = ROWS[world][rank], []
    for step in range(3):
        batches = micro_batches(step, rows)
        coreset = selector.select(batches, [SOURCES[i] for i in rows], dataset_index=rows)
        batches = selector.take(batches, coreset)
        for number, batch in enumerate(batches, start=1):
            labels = batch.pop("labels")
            loss = example_mean(model(**batch).logits, labels, num_examples=KEPT) * world
            if stage is None:
                loss.backward()
            else:
                model.set_gradient_accumulation_boundary(number == len(batches))
                model.backward(loss)
        (optimizer if stage is None else model).step()
        optimizer.zero_grad()
        kept.append(selector.commit().kept)
    return {"kept": kept, "weights": torch.cat([whole(weight).flatten() for weight in model.module.parameters()])}


def main() -> None:
    import deepspeed

    deepspeed.init_distributed("gloo")
    torch.set_num_threads(1)
    found = {stage: train(stage) for stage in (None, 1, 2, 3)}
    if dist.get_rank() == 0:
        torch.save(found, Path(sys.argv[1]) / "found.pt")
    leave_ranks()


if __name__ == "__main__":
    main()
