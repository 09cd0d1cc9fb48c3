"""Uninterrupted runs, and the same runs resumed after being killed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tests.support.files import write_lines, write_settings
from tests.support.models import tiny_model
from tests.support.trainers import arguments, collate, lines, same_weights, weights
from torch.utils.data import IterableDataset, get_worker_info

from colm import CoresetTrainer, SelectionConfig
from colm.lab.run.prepare import prepare_data
from colm.lab.run.settings import load_settings
from colm.step.ranks import rank_and_world
from colm.trainers.passes import read_pass_state

STEPS_OF_A_PASS = 7
"""At most."""

STRATEGIES = {"grouped": "group_by_length", "balanced": "batch_rebalance", "in order": "sequential"}
STREAMS = ("stream", "shards", "own stream", "own generator", "dealt stream")

FACTORS: dict[str, list[Any]] = {
    "data": ["random", "grouped", "balanced", "in order", "unseeded", "dispatched", "dealt", *STREAMS],
    "mixing": ["plain", "weights", "cap", "cap and weights"],
    "epoch": [1, 2, 3],
    "killed": ["first", "middle", "end"],  # behind which of the steps of this epoch
    "workers": ["none", "two", "two that stay"],
    "rows": [16, 17],  # the last pool has all its rows, or one
    "evaluates": ["no", "epoch"],
}


def possible(case: dict[str, Any]) -> bool:
    """Return whether such a run exists: streams are not capped, and the streams made here are not mixed."""
    if case["data"] == "stream":
        return "cap" not in case["mixing"]
    return case["data"] not in STREAMS or bool(case["mixing"] == "plain")


class OwnStream(IterableDataset[dict[str, Any]]):
    """Rows in a different order on each pass, from a generator that keeps its state."""

    def __init__(self, rows: Dataset) -> None:
        self.rows = list(rows)
        self.draw = random.Random(0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return iter(self.draw.sample(self.rows, len(self.rows))[first::step])


class OwnNumberedStream(OwnStream):
    """Rows in an order that depends on the pass number."""

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.draw.seed(self.epoch)
        return super().__iter__()


def make_data(folder: Path, case: dict[str, Any], world: int = 1) -> Any:
    """Prepare a training set as the command line does, with the same number of passes on any number of ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    capped = 8 if "cap" in case["mixing"] else 0
    draw = random.Random(0)
    rows = [
        {"source": "big" if i % 4 else "small", "prompt": "x" * draw.randint(1, 9), "completion": f"{i}"}
        for i in range(case["rows"] + 16 * (world - 1) + capped)
    ]
    mixture = [
        {"source": name, "path": write_lines(folder / f"{name}.jsonl", (row for row in rows if row["source"] == name))}
        for name in ("big", "small")
    ]
    big = sum(row["source"] == "big" for row in rows)
    values = {
        "model": "tiny",
        "data": {
            "max_length": 32,
            **({"cap": {"big": big - capped}} if capped else {}),
            **({"weights": {"big": 0.6, "small": 0.4}} if "weights" in case["mixing"] else {}),
            **({"streaming": True, "window": 8} if case["data"] == "stream" else {}),
        },
        "mixture": mixture,
        "output_dir": str(folder / "unused"),
    }
    data = prepare_data(load_settings(write_settings(folder, values), [])).train
    if case["data"] == "dealt stream":
        return data.to_iterable_dataset().shuffle(seed=0, buffer_size=5)
    if case["data"] == "shards":
        return data.to_iterable_dataset(num_shards=2).shuffle(seed=0, buffer_size=5)
    made = {"own stream": OwnNumberedStream, "own generator": OwnStream}.get(case["data"])
    return made(data) if made else data


def make_trainer(folder: Path, case: dict[str, Any], *, world: int = 1, **changes: Any) -> CoresetTrainer:
    """Make the trainer of a case: a model with dropout, and a checkpoint at each step."""
    model = tiny_model("llama", num_hidden_layers=2, vocab_size=1024, attention_dropout=0.2)
    workers = 0 if case["workers"] == "none" else 2
    args = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS_OF_A_PASS * case["epoch"] + 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 4,  # most checkpoints are within the steps of a log
        "eval_strategy": case["evaluates"],
        "train_sampling_strategy": STRATEGIES.get(case["data"], "random"),
        "dataloader_num_workers": workers,
        "dataloader_persistent_workers": "stay" in case["workers"],
        "accelerator_config": {
            "use_seedable_sampler": case["data"] != "unseeded",
            "dispatch_batches": True if case["data"] == "dispatched" else None,
        },
        "include_num_input_tokens_seen": "all",
        **changes,
    }
    trainer = CoresetTrainer(
        model=model,
        args=arguments(folder, **args),
        train_dataset=make_data(folder.with_name(f"data-{rank_and_world()[0]}"), case, world),
        eval_dataset=Dataset.from_list([{"input_ids": [1, 2, 3], "attention_mask": [1] * 3, "labels": [1, 2, 3]}] * 2),
        data_collator=collate,
        selection=SelectionConfig(
            keep=0.5, **({"features": "none", "order": "balanced"} if "dealt" in case["data"] else {})
        ),
        **({"window": 16, "source_sizes": {"big": 12, "small": 4}} if case["data"] == "dealt stream" else {}),
    )
    torch.manual_seed(len(folder.name))  # the state before a resume must not matter
    return trainer


def outcome(trainer: CoresetTrainer, folder: Path) -> dict[str, Any]:
    """Return the results on which a run and its resumed twin must agree."""
    state = trainer.state
    return {
        "weights": weights(trainer),
        "lines": lines(folder) if trainer.is_world_process_zero() else [],
        "tokens": state.num_input_tokens_seen,
        "operations": state.total_flos,
        "epoch": state.epoch,
        **{
            name: [(log["step"], log[name]) for log in state.log_history if name in log]
            for name in ("eval_loss", "loss")
        },
    }


def choose_checkpoint(run: Path, case: dict[str, Any]) -> Path:
    """Return the checkpoint after which the case's run is killed."""
    found = sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    places = [read_pass_state(str(path)) or {} for path in found]
    assert any(place["epoch"] >= case["epoch"] for place in places), "the run ends before the pass does"
    within = [path for path, place in zip(found, places, strict=True) if place["epoch"] == case["epoch"] - 1]
    assert len(within) >= 3
    return within[{"first": 0, "middle": len(within) // 2, "end": -1}[case["killed"]]]


def end_workers(trainer: CoresetTrainer) -> None:
    """End persistent data loader processes: if freed as part of a cycle, PyTorch waits 5 s for each."""
    for loader in (*trainer.accelerator._dataloaders, *getattr(trainer, "_eval_dataloaders", {}).values()):
        iterator = getattr(loader, "base_dataloader", loader)._iterator
        if hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()


def interrupt(folder: Path, case: dict[str, Any], **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train a run without interruption, then again resumed after a kill at one of its steps; return both outcomes."""
    whole = make_trainer(folder / "whole", case, **changes)
    whole.train()
    end_workers(whole)
    killed = folder / "killed-run"
    if whole.is_world_process_zero():
        kept = choose_checkpoint(folder / "whole", case)
        shutil.copytree(kept, killed / kept.name)
        shutil.copy(folder / "whole" / "selection.jsonl", killed)
    whole.accelerator.wait_for_everyone()
    again = make_trainer(killed, case, **changes)
    again.train(resume_from_checkpoint=True)
    end_workers(again)
    return outcome(whole, folder / "whole"), outcome(again, killed)


def differences(whole: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """Name the differing results, and the first step whose line differs."""
    found = [name for name in whole if name not in ("weights", "lines") and whole[name] != again[name]]
    if [line["step"] for line in whole["lines"]] != [line["step"] for line in again["lines"]]:
        found.append("steps")
    found += [f"line of step {a['step']}" for a, b in zip(whole["lines"], again["lines"], strict=False) if a != b][:1]
    if not same_weights(whole["weights"], again["weights"]):
        found.append("weights")
    return found
