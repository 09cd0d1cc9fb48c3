"""Tiny trainers and the rows that they train on."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tests.support.files import read_lines
from tests.support.models import tiny_model
from transformers import Trainer, TrainingArguments

from colm import CoresetTrainer, SelectionConfig
from colm.losses import example_mean


def example_mean_of_outputs(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    return example_mean(outputs["logits"], labels, num_examples=num_items_in_batch)


SHORT: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 3,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "use_cpu": True,
}
"""Settings of a short training on the CPU that prints and saves nothing."""


def mixture(rows: int = 96, seed: int = 0) -> Dataset:
    """Make rows whose tokens come from a range specific to their source, so that there is something to learn."""
    draw = random.Random(seed)
    made = []
    for _ in range(rows):
        source = draw.choices("abcd", [0.55, 0.35, 0.07, 0.03])[0]
        base = "abcd".index(source) * 16
        ids = [base + draw.randrange(1, 8) for _ in range(draw.randint(4, 12))]
        made.append(
            {
                "source": source,
                "input_ids": ids,
                "attention_mask": [1] * len(ids),
                "labels": [-100, -100, *ids[2:]],
            }
        )
    return Dataset.from_list(made)


def validation_rows(**rows: int) -> Dataset:
    """Return so many rows of each source, sorted by source."""
    names = [name for name in sorted(rows) for _ in range(rows[name])]
    return mixture(len(names)).remove_columns("source").add_column("source", names)


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {k: torch.tensor([row[k] + [v] * (width - len(row[k])) for row in rows]) for k, v in fill.items()}


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    return TrainingArguments(str(folder), **{**SHORT, "max_steps": 6, **changes})


def coreset_trainer(folder: Path, *, selection: SelectionConfig | None = None, **changes: Any) -> CoresetTrainer:
    return CoresetTrainer(
        model=changes.pop("model", None) or tiny_model("llama", num_hidden_layers=2),
        args=arguments(folder, **changes.pop("args", {})),
        train_dataset=changes.pop("train_dataset", None) or mixture(),
        data_collator=collate,
        selection=selection,
        **changes,
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    found = read_lines(folder / "selection.jsonl")
    for line in found:
        del line["seconds"], line["step_seconds"]
    return found


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def same_weights(one: Trainer | list[torch.Tensor], other: Trainer | list[torch.Tensor]) -> bool:
    """Return whether the weights, of trainers or as they were kept, are equal bit for bit."""
    held = [each if isinstance(each, list) else weights(each) for each in (one, other)]
    return all(torch.equal(a, b) for a, b in zip(*held, strict=True))


def check_resumes(make: Callable[[Path], Any], whole: Trainer, steps: Sequence[int]) -> None:
    """Check that a run resumed from each of these checkpoints of a whole run ends like it, in folders next to it."""
    folder = Path(whole.args.output_dir)
    for step in steps:
        killed = folder.with_name(f"killed-{step}")
        shutil.copytree(folder / f"checkpoint-{step}", killed / f"checkpoint-{step}")
        shutil.copy(folder / "selection.jsonl", killed)
        again = make(killed)
        again.train(resume_from_checkpoint=True)
        assert lines(killed) == lines(folder)
        assert same_weights(again, whole)


class Seen(Trainer):
    """Remembers the tokens of each micro-batch."""

    seen: list[list[list[int]]]

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Note, then train."""
        self.__dict__.setdefault("seen", []).append(inputs["input_ids"].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


def plain_trainer(folder: Path, data: Any = None, **changes: Any) -> Seen:
    """Return a Trainer of transformers with the model and the data of `coreset_trainer`."""
    data = mixture(90) if data is None else data
    return Seen(tiny_model("llama", num_hidden_layers=2), arguments(folder, **changes), collate, data)
