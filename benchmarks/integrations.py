"""How much each integration differs from plain training on one process: kept rows, summed gradient, losses.

    python benchmarks/integrations.py

Runs the scripts of the tests on gloo processes and prints one table. The error of a gradient is the norm of the
difference over the norm, the largest over all steps; the error of a loss is relative, the largest over all logs.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from setting import describe_setting

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import shard_on_ranks, train_on_ranks  # noqa: E402
from tests.support.processes import run_to_end, torchrun  # noqa: E402
from tests.support.trainers import coreset_trainer, lines, mixture  # noqa: E402

from colm import SelectionConfig  # noqa: E402


class Row(NamedTuple):
    """One line of the table."""

    what: str
    same: bool  # whether the same rows were kept
    gradient: float
    loss: float | None


def launch(script: Path, folder: Path, world: int) -> Any:
    """Run a script in `world` processes and return what it found."""
    folder.mkdir()
    run_to_end([*torchrun(world), str(script), str(folder)], seconds=None, ACCELERATE_USE_CPU="1", HF_HUB_OFFLINE="1")
    return torch.load(folder / "found.pt")


def distance(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def compare(what: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Row:
    """Compare two training runs of the Trainer."""
    same = [line["kept"] for line in ours["lines"]] == [line["kept"] for line in theirs["lines"]]
    losses = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(ours["logs"], theirs["logs"], strict=True))
    return Row(what, same, distance(ours["gradients"], theirs["gradients"]), losses)


def ranks(scratch: Path) -> list[Row]:
    """Compare DistributedDataParallel in the Trainer on 2 and 4 processes with one."""
    script = Path(train_on_ranks.__file__)
    found = {world: launch(script, scratch / f"ranks{world}", world) for world in (1, 2, 4)}
    return [
        compare(f"Trainer, DDP, {world} processes, {case}", found[world][case], found[1][case])
        for case in train_on_ranks.CASES
        for world in (2, 4)
    ]


def shards(scratch: Path) -> list[Row]:
    """Compare FSDP2 in a plain loop on 2 processes with one process holding the whole model, and with no selection."""
    script = Path(shard_on_ranks.__file__)
    one, two = (launch(script, scratch / f"shards{world}", world) for world in (1, 2))
    rows = []
    for (case, policy), (steps, plain) in two.items():
        whole, _ = one[case, None]
        same = [step["kept"] for step in steps] == [step["kept"] for step in whole]
        for what, other in (("one process", whole), ("no selection", plain)):
            if not same and what == "one process":
                error = float("nan")
            else:
                error = distance([step["gradient"] for step in steps], [step["gradient"] for step in other])
            rows.append(
                Row(f"plain loop, FSDP2, 2 processes, {case}, {policy}; compared with {what}", same, error, None)
            )
    return rows


def in_one_process(scratch: Path) -> list[Row]:
    """Compare micro-batch sizes, and options that must not change the training, in the Trainer."""

    def train(name: str, **args: Any) -> dict[str, Any]:
        kept = train_on_ranks.Gradients()
        folder = scratch / name
        args = {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 2, "max_steps": 3} | args
        trainer = coreset_trainer(
            folder,
            selection=SelectionConfig(keep_count=64),
            train_dataset=mixture(384),
            args={"max_grad_norm": 0.0, **args},
            callbacks=[kept],
        )
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()):  # the Trainer prints its logs
            trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        return {"gradients": kept.found, "logs": logs, "lines": lines(folder)}

    plain = train("plain")
    changes: dict[str, dict[str, Any]] = {
        f"{steps} micro-batches instead of 2": {
            "per_device_train_batch_size": 128 // steps,
            "gradient_accumulation_steps": steps,
        }
        for steps in (1, 16, 64)
    }
    changes |= {
        "gradient checkpointing": {"gradient_checkpointing": True},
        "2 data loader workers": {"dataloader_num_workers": 2},
    }
    return [compare(f"Trainer, {what}", train(what, **args), plain) for what, args in changes.items()]


def main() -> None:
    torch.set_num_threads(1)
    print(describe_setting("0"), end="\n\n")
    print("| integration | same rows | gradient | losses |\n| --- | --- | ---: | ---: |")
    parts: tuple[Callable[[Path], list[Row]], ...] = (in_one_process, ranks, shards)
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts:
            for row in part(Path(scratch)):
                loss = "" if row.loss is None else f"{row.loss:.0e}"
                print(f"| {row.what} | {'yes' if row.same else 'no'} | {row.gradient:.0e} | {loss} |", flush=True)


if __name__ == "__main__":
    main()
