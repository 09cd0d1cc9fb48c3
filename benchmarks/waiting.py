"""The share of a step that waits for data, by the data loader's workers.

    python benchmarks/waiting.py
    python benchmarks/waiting.py --cases tokens text --workers 0 1 --json

A tiny Llama is trained with random rows of each pool, so that the step is short, on the demo's mixture: rows that are
tokenized already, and rows of text that the collator tokenizes. A pool is 8 micro-batches of 8 rows, of which half is
kept. The ways take turns in each round; a figure is the median over rounds, of seconds in the stage "fetching the pool"
over seconds of the step. One thread computes; a worker needs a core of its own.

The case "device" sleeps for as long as a step takes in place of training, as the host does while a GPU computes.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from setting import describe_setting
from transformers import DataCollatorForSeq2Seq, LlamaConfig, LlamaForCausalLM, TrainingArguments

from colm import CoresetTrainer, SelectionConfig
from colm.lab.data.demo import demo_rows
from colm.lab.data.formats import Rendering
from colm.lab.data.tokenize import tokenize_rows
from colm.models import load_tokenizer
from colm.trainers import mixin

WARM, STEPS, VOCABULARY = 3, 12, 512
SECONDS = 0.15
"""Of a step on the device that is simulated."""


class Timed(CoresetTrainer):
    """Notes seconds per step: of fetching, and in all."""

    simulated = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fetching: list[float] = []
        self.begun: list[float] = []

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Note when a step begins, and how long its fetch takes."""
        self.begun.append(time.perf_counter())
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Train, or sleep as the host does while a GPU computes."""
        if not self.simulated:
            return super().training_step(*args, **kwargs)
        time.sleep(SECONDS / self.args.gradient_accumulation_steps)
        return torch.zeros(())


class Collator:
    """Pads rows, after tokenizing those of text, with ids modulo the tiny model's vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pad = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        """Return a padded batch; of text, every token is learned."""
        if "text" in rows[0]:
            ids = self.tokenizer([row["text"] for row in rows], truncation=True, max_length=512)["input_ids"]
            rows = [{"input_ids": each, "attention_mask": [1] * len(each), "labels": each} for each in ids]
        batch = self.pad(rows)
        labels = batch["labels"]
        batch["labels"] = torch.where(labels < 0, labels, labels % VOCABULARY)
        batch["input_ids"] %= VOCABULARY
        return batch


def data_of(case: str) -> tuple[Dataset, Any]:
    """Return the rows and the collator of a case."""
    tokenizer = load_tokenizer("demo")
    rows = demo_rows(4000, 0)
    if case == "text":
        texts = [{"source": row["source"], "text": f"{row['prompt']}{row['completion']}" * 4} for row in rows]
        return Dataset.from_list(texts), Collator(tokenizer)
    rendering = Rendering(512, chat=False)
    tokens = tokenize_rows(
        [rows], tokenizer, format_name="prompt_completion", rendering=rendering, source_column="source"
    )
    return tokens, Collator(tokenizer)


def share_of_fetching(rows: Dataset, collator: Any, workers: int, *, simulated: bool) -> tuple[float, float]:
    """Return the median share of a step that fetches, and the median seconds of a step."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            model=LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **shape)),
            args=TrainingArguments(
                folder,
                per_device_train_batch_size=8,
                gradient_accumulation_steps=8,
                max_steps=WARM + STEPS,
                dataloader_num_workers=workers,
                dataloader_pin_memory=False,
                remove_unused_columns=False,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                logging_steps=1000,
                disable_tqdm=True,
            ),
            train_dataset=rows,
            data_collator=collator,
            selection=SelectionConfig(features="none"),
        )
        trainer.simulated = simulated
        enter = mixin.stage

        class Clock:
            def __init__(self, name: str) -> None:
                self.name, self.inner = name, enter(name)

            def __enter__(self) -> None:
                self.start = time.perf_counter()
                self.inner.__enter__()

            def __exit__(self, *args: Any) -> None:
                self.inner.__exit__(*args)
                if self.name == mixin.FETCH:
                    trainer.fetching.append(time.perf_counter() - self.start)

        mixin.stage = Clock  # type: ignore[assignment,misc]
        try:
            trainer.train()
        finally:
            mixin.stage = enter
        steps = [after - before for before, after in zip(trainer.begun[:-1], trainer.begun[1:], strict=True)][WARM:]
        shares = [fetch / step for fetch, step in zip(trainer.fetching[WARM:], steps, strict=False)]
    return statistics.median(shares), statistics.median(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["tokens", "text"], choices=["tokens", "text"])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    found: dict[str, list[tuple[float, float]]] = {}
    for case in given.cases:
        rows, collator = data_of(case)
        for _ in range(given.rounds):
            for simulated in (False, True):
                for workers in given.workers:
                    name = f"{case}, {'device' if simulated else 'cpu'}, {workers} workers"
                    found.setdefault(name, []).append(share_of_fetching(rows, collator, workers, simulated=simulated))
    medians = {name: [statistics.median(values) for values in zip(*runs, strict=True)] for name, runs in found.items()}
    if given.json:
        print(json.dumps({"setting": describe_setting("0"), "found": medians}))
        return
    print("| rows | share of the step that waits for data | seconds of a step |\n| --- | --- | --- |")
    for name, (share, seconds) in medians.items():
        print(f"| {name} | {share:.1%} | {seconds:.3f} |")


if __name__ == "__main__":
    Path("runs").mkdir(exist_ok=True)
    main()
