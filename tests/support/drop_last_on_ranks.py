"""Started by torchrun in test_ranks.py: trains a pass in balanced order and drops the last batches."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.trainers import coreset_trainer, lines, mixture

from colm import SelectionConfig
from colm.step.ranks import leave_ranks


def main(folder: Path) -> None:
    # Batches of 4 over 2 ranks: of 78 rows, 9 rounds of 8 are served, and a whole batch of one rank is left over.
    trainer = coreset_trainer(
        folder,
        selection=SelectionConfig(features="none", order="balanced", noise_every=0),
        args={"gradient_accumulation_steps": 2, "max_steps": 5, "dataloader_drop_last": True},
        train_dataset=mixture(78),
    )
    trainer.train()
    if trainer.is_world_process_zero():
        assert trainer._balanced is not None
        served = [sorted(row for rows in line["pool"].values() for row in rows) for line in lines(folder)]
        found = {"dealt": trainer._balanced.dealer.deal(0).rows.tolist(), "served": served}
        (folder / "found.json").write_text(json.dumps(found))
    leave_ranks()


if __name__ == "__main__":
    from accelerate import PartialState

    PartialState(cpu=True)
    main(Path(sys.argv[1]))
