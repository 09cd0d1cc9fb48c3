"""Started by torchrun in test_ranks.py: trains each case in the Trainer and saves what must not depend on ranks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.trainers import coreset_trainer, lines, mixture, weights

from colm import SelectionConfig
from colm.config import PRESETS
from colm.step.ranks import gather_rows, leave_ranks, rank_and_world

CASES: dict[str, dict[str, Any]] = {
    "exact": {},
    "represented": {"features": "none", "weights": "represented"},
    "fitted": {**PRESETS["matched"], "weights": "fitted", "coordinates": 200},
    # Kept rows from another rank have no stored forward on this rank.
    "reuse": {"reuse_forward": True},
    "joined": {"padding_free": True, "features": "none", "weights": "relative"},
    "dealt": {"features": "none", "order": "balanced"},
    "dealt stream": {"features": "none", "order": "balanced"},
    # One source after the other: ranks that hold only small sources, or no row of some source.
    "in order": {},
}
ROWS = 78  # of pools of 16, in micro-batches of 4: the last pool has 14 rows, its last micro-batch 2


class Gradients(TrainerCallback):
    """Keeps the gradient of every step, summed over micro-batches and ranks."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        """Copy it."""
        self.found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, world = rank_and_world()
    found = {name: train(folder / name, name, world) for name in CASES}
    if rank == 0:
        torch.save(found, folder / "found.pt")
    leave_ranks()
    threads = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name], threads  # would abort some runs at exit


def train(folder: Path, name: str, world: int) -> dict[str, Any]:
    data = mixture(ROWS)
    torch.manual_seed(0)
    trainer = coreset_trainer(
        folder,
        selection=SelectionConfig(**{"keep_count": 9, "noise_every": 2, **CASES[name]}),
        args={
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4 // world,
            "max_steps": 7,
            "max_grad_norm": 0.0,
            "gradient_checkpointing": name == "reuse",
            "train_sampling_strategy": "sequential" if name == "in order" else "random",
        },
        train_dataset={"in order": data.sort("source", reverse=True), "dealt stream": data.to_iterable_dataset()}.get(
            name, data
        ),
        window=40,  # of a stream: 2 pools and some rows
        source_sizes={"a": 43, "b": 27, "c": 5, "d": 2} if name == "dealt stream" else None,
    )
    gradients = Gradients()
    trainer.add_callback(gradients)
    evaluation = trainer.evaluate(mixture(64, seed=1))["eval_loss"]  # which fills the batches of 1, 2 and 4 ranks
    torch.manual_seed(0)
    trainer.train()
    noise = trainer.selector.state_dict()["noise"]
    same = gather_rows(torch.tensor([noise["overall"], *noise["sources"].values()])[None])
    assert all(torch.equal(same[0], other) for other in same)
    return {
        "noise": noise,
        "weights": weights(trainer),
        "gradients": gradients.found,
        "logs": [log for log in trainer.state.log_history if "loss" in log],
        "evaluation": evaluation,
        "lines": lines(folder) if trainer.is_world_process_zero() else [],
    }


if __name__ == "__main__":
    from accelerate import PartialState

    PartialState(cpu=True)
    main(Path(sys.argv[1]))
