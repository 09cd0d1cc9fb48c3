"""How soon does a free method with the lean step reach the final macro loss of the plain Trainer?

    python benchmarks/sooner.py reasoning --free control --rows 32 --seeds 1 2 3
    python benchmarks/sooner.py demo --free temperature --rows 8 --seeds 1 2 3
    python benchmarks/sooner.py page                  # rows of docs/results/sooner.md, from the stored runs

The plain side is `transformers.Trainer` with its default collator and order on random rows; the free side is
`CoresetTrainer` without a selection pass. Both train as many rows a step in four micro-batches. Each side has its
best rate by final macro loss on seed 0, from `RATES` on by factors of two, and its own linear schedule. The free
side's number of steps is the smallest of `SHARES` of the plain side's that reaches the plain side's final macro loss
on seed 0. On each counted seed both sides train in turn; seconds are process time on one thread, without evaluations,
until the macro loss of the free side's evaluations, linear in between, is that of the plain side's end.

Runs are stored in runs/sooner, so that an interrupted command goes on. `reasoning` and `real` need the output of
benchmarks/experiments/prepare.py; `demo` trains a new model with a vocabulary of 49,152 on the demo's mixture.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from by_source import rows_by_source
from setting import describe_setting
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from colm import LeanHead, SelectionConfig
from colm.lab.intervals import estimate_mean
from colm.lab.report.loss_curves import find_first_reach
from colm.lab.run.prepare import PreparedData, prepare_data
from colm.lab.run.settings import resolve_settings
from colm.models import load_model
from colm.trainers.hf import CoresetTrainer

RATES = (1e-3, 2e-3, 4e-3)
SHARES = (0.2, 0.3, 0.4, 0.55, 0.75, 1.0)
TRAINED_ROWS = {"reasoning": 2048, "real": 2048, "demo": 320}  # of the plain side
MICRO_BATCHES, EVALUATIONS, TEMPERATURE = 4, 8, 10 / 3
ROOT = Path("runs/sooner")
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "sooner.md"
RULE = f"|{' --- |' * 12}"
"""The line between the head and the rows of the page's table."""

FREE = {
    "same": SelectionConfig(features="none", keep=1.0, small_sources="none", by_source=False, loss="token"),
    "random": SelectionConfig(features="none", keep=1.0, small_sources="none", by_source=False),
    "control": SelectionConfig(features="none", keep=0.5),
    "balanced": SelectionConfig(features="none", keep=0.5, order="balanced", loss="token"),
    "temperature": SelectionConfig(features="none", keep=1.0, small_sources="none", by_source=False),
}
"""The same rows and loss as the plain side's; the same rows; small sources kept and half of each pool trained; the same
with the plain side's loss, the rows dealt evenly; sources drawn by temperature."""


def load(name: str, temperature: float | None = None) -> PreparedData:
    """Return the tokenized rows of a mixture."""
    if name == "demo":
        data: dict[str, Any] = {"train": "demo", "demo_rows": 20_000, "max_length": 192}
        values: dict[str, Any] = {"model": "demo", "data": data}
    else:
        folder = f"runs/experiments/{name}"
        length = {"reasoning": 192, "real": 256}[name]
        held_out = {"reasoning": "validation", "real": "validation_half"}[name]
        data = {"train": f"{folder}/train.jsonl", "validation": f"{folder}/{held_out}.jsonl", "max_length": length}
        values = {"model": f"{folder}/model", "data": data}
    data |= {"chat_template": False, "temperature": temperature, "seed": 0}
    return prepare_data(resolve_settings({**values, "output_dir": "unused"}))


def build_model(name: str) -> Any:
    if name != "demo":
        return load_model(f"runs/experiments/{name}/model", dtype="float32")
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
    return LlamaForCausalLM(LlamaConfig(vocab_size=49_152, tie_word_embeddings=True, **sizes))


class Meter(TrainerCallback):
    """Evaluates at the end, or every so many steps, and notes the process time of the steps before."""

    def __init__(self, data: PreparedData, every: int) -> None:
        self._data = data
        self._every = every
        self._collator = DataCollatorForSeq2Seq(data.tokenizer)
        self._start = self._spent = 0.0
        self.points: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every and state.global_step < state.max_steps:
            return
        self._spent += time.process_time() - self._start
        losses = self._evaluate(kwargs["model"])
        self.points.append({"step": state.global_step, "seconds": self._spent, "losses": losses})
        self._start = time.process_time()

    @torch.no_grad()
    def _evaluate(self, model: Any) -> dict[str, tuple[float, float]]:
        """Return each source's loss: the mean over its rows' means, and the mean over its tokens."""
        model.eval()
        head, found = LeanHead(model, check=False), {}
        for source, rows in rows_by_source(self._data.validation).items():
            by_row, by_token = [], []
            for batch in DataLoader(plain_rows(rows), 64, collate_fn=self._collator):
                labels = batch.pop("labels")
                with head.reading(labels):
                    output = model(**batch)
                    by_row.append(head.row_losses(output))
                    by_token.append(head.token_losses(output))
            found[source] = (torch.cat(by_row).mean().item(), torch.cat(by_token).mean().item())
        model.train()
        return found


def plain_rows(rows: Any) -> Any:
    """Return rows with the columns that a collator takes."""
    keys = ("input_ids", "attention_mask", "labels")
    return rows.select_columns([key for key in keys if key in rows.column_names])


class Run(dict[str, Any]):
    """A stored run: its settings, and the points of its `Meter`."""

    def macros(self, kind: int = 0) -> list[float]:
        """Return the means over sources, of rows (0) or of tokens (1)."""
        return [fmean(loss[kind] for loss in point["losses"].values()) for point in self["points"]]

    def micro(self, sizes: Mapping[str, int], kind: int = 0) -> float:
        """Return the last mean over sources weighted by their rows."""
        losses = self["points"][-1]["losses"]
        return sum(loss[kind] * sizes[source] for source, loss in losses.items()) / sum(map(sizes.get, losses))


class Study:
    """The runs of one mixture with one free way and one number of rows a step."""

    def __init__(self, name: str, free: str, rows: int) -> None:
        self.name, self.free, self.rows = name, free, rows
        self.data = load(name)
        self.sizes = self.data.counts.left if self.data.counts else {}
        self._resampled = load(name, TEMPERATURE) if free == "temperature" else self.data
        self.steps = TRAINED_ROWS[name] // rows

    def run(self, side: str, seed: int, rate: float, steps: int) -> Run:
        """Train one side, or return the stored run."""
        way = "plain" if side == "plain" else self.free
        path = ROOT / self.name / f"{way}-{self.rows}-{seed}-{rate:g}-{steps}.json"
        if path.exists():
            return Run(json.loads(path.read_text()))
        micro_batch = self.rows // MICRO_BATCHES
        config = FREE[self.free]
        pool = 1 if side == "plain" else round(1 / (config.keep or 1))
        model = build_model(self.name)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                folder,
                per_device_train_batch_size=pool * micro_batch,
                gradient_accumulation_steps=MICRO_BATCHES,
                max_steps=steps,
                learning_rate=rate,
                warmup_steps=0.05,
                lr_scheduler_type="linear",
                seed=seed,
                data_seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
            )
            often = side == "free" and self.free != "same" and seed  # only the time to a loss needs more than the last
            meter = Meter(self.data, max(1, steps // EVALUATIONS) if often else steps)
            shared = {"args": args, "callbacks": [meter], "data_collator": DataCollatorForSeq2Seq(self.data.tokenizer)}
            trainer = (
                Trainer(model, train_dataset=plain_rows(self.data.train), **shared)
                if side == "plain"
                else CoresetTrainer(model, train_dataset=self._resampled.train, selection=config, **shared)
            )
            trainer.train()
        found = Run(
            side=side, seed=seed, rate=rate, steps=steps, points=meter.points, setting=describe_setting(str(seed))
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        print(f"{path.name}: macro {found.macros()[-1]:.4f}, {meter.points[-1]['seconds']:.0f} s", flush=True)
        return found

    def best_rate(self, side: str) -> float:
        """Return the rate of the lowest final macro loss on seed 0; half and twice of it were tried, too."""
        rates = set(RATES)
        while True:
            best = min(rates, key=lambda rate: self.run(side, 0, rate, self.steps).macros()[-1])
            beside = {best / 2, 2 * best}
            if beside <= rates:
                return best
            rates |= beside

    def choose_steps(self, rate: float, target: float) -> int:
        """Return the fewest steps of the free side whose final macro loss on seed 0 is at most the target."""
        steps = [max(1, round(share * self.steps)) for share in SHARES]
        low, high = 0, len(steps) - 1  # bisection: longer runs end lower
        while low < high:
            middle = (low + high) // 2
            reached = self.run("free", 0, rate, steps[middle]).macros()[-1] <= target
            low, high = (low, middle) if reached else (middle + 1, high)
        return steps[low]

    def compare(self, seeds: list[int], steps_of_free: int | None = None) -> None:
        """Run all that the page needs, and store which runs it compares.

        Args:
            seeds: those that count.
            steps_of_free: instead of the fewest that reach the loss on seed 0.
        """
        plain = self.best_rate("plain")
        if self.free == "same":
            free, steps = plain, self.steps
        else:
            free = self.best_rate("free")
            target = self.run("plain", 0, plain, self.steps).macros()[-1]
            steps = steps_of_free or self.choose_steps(free, target)
        pairs = [(self.run("plain", s, plain, self.steps), self.run("free", s, free, steps)) for s in seeds]
        listed = {
            "name": self.name, "free": self.free, "rows": self.rows, "sizes": self.sizes, "rates": [plain, free],
            "steps": [self.steps, steps], "pairs": pairs,
        }  # fmt: skip
        (ROOT / f"{self.name}-{self.free}-{self.rows}.json").write_text(json.dumps(listed))
        print(describe(listed), flush=True)


def describe(listed: Mapping[str, Any]) -> str:
    """Return a line of the table: ratios of seconds, and differences of final losses, paired by seed."""
    pairs = [(Run(plain), Run(free)) for plain, free in listed["pairs"]]
    sizes = listed["sizes"]
    shown = []
    for kind in (0, 1):
        times = [time_to_reach(plain, free, kind, whole=listed["free"] == "same") for plain, free in pairs]
        missed = sum(reached is None for reached in times)
        known = [reached for reached in times if reached is not None]
        shown.append(show(known, "", 2) + (f", {missed} of {len(times)} never" if missed else ""))
    for kind in (0, 1):
        shown.append(show([free.macros(kind)[-1] - plain.macros(kind)[-1] for plain, free in pairs], "+", 3))
        shown.append(show([free.micro(sizes, kind) - plain.micro(sizes, kind) for plain, free in pairs], "+", 3))
    rates, steps = ("{:g} / {:g}".format(*listed[key]) for key in ("rates", "steps"))
    commits = {run["setting"].partition("commit ")[2].partition(";")[0] for run in chain.from_iterable(listed["pairs"])}
    cells = (listed["name"], listed["rows"], listed["free"], rates, steps, *shown, ", ".join(sorted(commits)))
    return f"| {' | '.join(map(str, cells))} |"


def time_to_reach(plain: Run, free: Run, kind: int, *, whole: bool) -> float | None:
    """Return the free side's seconds to the plain side's final macro loss, of the plain side's; None if never.

    With `whole`, its seconds in all: the same training ends at the same loss, up to rounding.
    """
    if whole:
        return float(free["points"][-1]["seconds"] / plain["points"][-1]["seconds"])
    seconds = [point["seconds"] for point in free["points"]]
    reached = find_first_reach(seconds, free.macros(kind), plain.macros(kind)[-1])
    return None if reached is None else reached / plain["points"][-1]["seconds"]


def show(values: list[float], sign: str, digits: int) -> str:
    mean = estimate_mean(values)
    if mean is None:
        return "-"
    ends = "" if mean.half is None else f" ± {mean.half:.{digits}f}"
    return f"{mean.mean:{sign}.{digits}f}{ends}"


def update_table(page: str, rows: list[str]) -> str:
    """Return the page with rows put in order into its table, instead of those of the same mixture, rows and method."""
    head, rule, table = page.partition(RULE)
    found = {tuple(row.split(" | ")[:3]): row for row in [*table.strip().splitlines(), *rows]}
    return "\n".join([head + rule, *(found[key] for key in sorted(found)), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=("reasoning", "real", "demo", "page"))
    parser.add_argument("--free", choices=FREE, default="control")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help="of the free side (default: the fewest that suffice on seed 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.name != "page":
        Study(arguments.name, arguments.free, arguments.rows).compare(arguments.seeds, arguments.steps)
        return
    held = [json.loads(path.read_text()) for path in ROOT.glob("*.json")]
    RESULTS.write_text(update_table(RESULTS.read_text(), [describe(listed) for listed in held]))


if __name__ == "__main__":
    main()
