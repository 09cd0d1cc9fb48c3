"""The trainer of one run: colm's with a method, or the plain Trainer that a user has today."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from helps_cells import PLAIN
from helps_rows import Rows, pad_rows
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

from colm import CoresetTrainer, SelectionConfig
from colm.lab.study.methods import method_settings


class Size(NamedTuple):
    """What differs between the GPU and the rehearsal."""

    steps: int
    pool: int  # rows, in one micro-batch: a small model's micro-batch costs the GPU the same at any size
    every: int  # steps between evaluations
    warmup: int
    batch: int  # rows per evaluation batch; four times as many for questions
    new_tokens: int


class Run(NamedTuple):
    """One training."""

    name: str  # on the page
    method: str  # of colm.lab.study.methods, or `PLAIN`
    share: float  # of the pool, rows of a step
    rate: float  # peak learning rate
    seed: int
    shuffle: int  # seed of the row order: the run's, except for a planted fault

    @property
    def unit(self) -> str:
        """The run's name in the figures."""
        return f"seed {self.seed}/{self.name}"

    def rows(self, size: Size) -> int:
        """Return the rows that each step trains."""
        return round(self.share * size.pool)

    @property
    def selection(self) -> SelectionConfig:
        """How colm's trainer selects."""
        values = {"selection": SelectionConfig(keep=0.25, seed=self.seed).to_dict(), "training": {}}
        return SelectionConfig.from_dict(method_settings(self.method, values)["selection"])


def make_trainer(
    run: Run, size: Size, steps: int, model: Any, rows: Rows, tokenizer: Any, device: torch.device, folder: Path
) -> Any:
    """Return the trainer of a run; its log and checkpoints would go to the folder."""
    plain, cuda = run.method == PLAIN, device.type == "cuda"
    args = TrainingArguments(
        output_dir=str(folder),
        seed=run.seed,
        max_steps=steps,
        per_device_train_batch_size=run.rows(size) if plain else size.pool,
        learning_rate=run.rate,
        lr_scheduler_type="linear",
        warmup_steps=min(size.warmup, steps),
        bf16=cuda,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    if plain:
        return Trainer(
            model=model,
            args=args,
            train_dataset=rows.train.select_columns(["input_ids", "attention_mask", "labels"]),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            processing_class=tokenizer,
        )
    return CoresetTrainer(
        model=model,
        args=args,
        train_dataset=rows.train,
        data_collator=partial(pad_rows, pad=tokenizer.pad_token_id),
        processing_class=tokenizer,
        selection=run.selection,
    )
