"""Started by torchrun in test_sampling.py: two processes train on the rows of the control, in a plain Trainer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.trainers import collate, coreset_trainer, mixture, plain_trainer

import colm
from colm import MixtureBatchSampler, SelectionConfig
from colm.step.ranks import leave_ranks, rank_and_world


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, world = rank_and_world()
    data = mixture(90)
    changes: dict[str, Any] = {"gradient_accumulation_steps": 2, "max_steps": 8, "seed": 0}
    control = coreset_trainer(
        folder / "control",
        train_dataset=data,
        selection=SelectionConfig(features="none"),
        args={**changes, "max_steps": 5},
    )
    control.train()
    changes |= {"per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 4}
    whole = plain_trainer(folder / "whole", data, **changes)
    sampler = colm.use_mixture_sampler(whole)
    rank, world = rank_and_world()
    assert (sampler.rank, sampler.world_size) == (rank, world)
    whole.train()
    resumed = plain_trainer(folder / "resumed", data, **changes)
    colm.use_mixture_sampler(resumed)
    resumed.train(str(folder / "whole" / "checkpoint-4"))
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(even_batches=False))
    everyone = MixtureBatchSampler(data["source"], 2, accumulation=2, rank="all")
    loader = accelerator.prepare(DataLoader(data, batch_sampler=everyone, collate_fn=collate))
    found = {
        "whole": whole.seen,
        "resumed": resumed.seen,
        "prepared": [batch["input_ids"].tolist() for batch in loader],
        "expected": [
            collate([data[row] for row in batch])["input_ids"].tolist()
            for batch in MixtureBatchSampler(data["source"], 2, accumulation=2)
        ],
    }
    torch.save(found, folder / f"rank-{rank}.pt")
    del control, whole, resumed, accelerator, loader
    leave_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
