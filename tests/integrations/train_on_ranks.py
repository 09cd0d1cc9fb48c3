"""Started by torchrun in test_ranks.py: trains in the Trainer and saves weights, losses and kept rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.integrations.test_hf import coreset_trainer, lines, weights

from colm import SelectionConfig
from colm.config import PRESETS
from colm.gather import rank_and_world


def main(folder: Path, features: str, weighing: str) -> None:
    rule: dict[str, Any] = {}
    if weighing == "fitted":
        rule = {**PRESETS["matched"], "coordinates": 200}
    torch.set_num_threads(1)
    world = rank_and_world()[1]
    torch.manual_seed(0)
    trainer = coreset_trainer(
        folder,
        selection=SelectionConfig(**{"features": features, "weights": weighing, "keep_count": 9, **rule}),
        args={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4 // _world(), "max_steps": 5},
    )
    evaluation = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    torch.manual_seed(0)
    trainer.train()
    rank, world = rank_and_world()
    if rank == 0:
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        found = {
            "weights": weights(trainer),
            "losses": losses,
            "evaluation": evaluation,
            "lines": [{key: line[key] for key in ("pool", "kept")} for line in lines(folder)],
        }
        torch.save(found, folder / f"{features}-of-{world}.pt")


def _world() -> int:
    import os

    return int(os.environ["WORLD_SIZE"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
