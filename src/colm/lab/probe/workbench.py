"""A run's model, optimizer and rows: to train a little, to time a step, and to see single rows' gradients."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.features.capture import FP16_LOSS_SCALE
from colm.features.shorten import draw_sketch
from colm.lab.probe.worth import Choice
from colm.lab.run.checkpointing import enable_checkpointing, read_checkpointing
from colm.lab.run.prepare import prepare_data
from colm.lab.run.settings import RunSettings
from colm.lab.run.trainer import make_trainer
from colm.lab.run.training import UNSHARDED
from colm.lean import lean_head
from colm.losses import example_losses
from colm.sampler import MixtureBatchSampler
from colm.selector import CoresetSelector
from colm.step.balance import split_evenly
from colm.step.sources import name_sources

WARM_UP = 10
SKETCH = 2**13
MOST_WEIGHTS = 2**24
"""Trained weights whose gradients are looked at; of more, a random sample stands for all."""

ALONE = {**UNSHARDED, "bf16_full_eval": False, "fp16_full_eval": False}
"""Training arguments with which the Trainer places the whole model at once."""

KEYS = ("input_ids", "attention_mask", "labels")


class Timing(NamedTuple):
    """The time of a step."""

    seconds: float
    micro_batch: int  # rows; the fastest of those tried


class Workbench:
    """Trains as the run would, at its learning rate without decay, and measures between the steps.

    Args:
        settings: of the run.

    Raises:
        ConfigError: the data is a stream; or as making a trainer does.
    """

    def __init__(self, settings: RunSettings) -> None:
        if settings.data.streaming:
            raise ConfigError(
                "colm probe draws rows from all of the data, which is not possible for a stream; set "
                "data.streaming=false, or name a file with a part of the data."
            )
        data = prepare_data(settings)
        self.trainer = make_trainer(settings._replace(training={**settings.training, **ALONE}), data)
        self.model: Any = self.trainer.model
        self.selection = settings.selection
        checkpointing = read_checkpointing(settings.arguments)
        if checkpointing is not None:
            enable_checkpointing(self.model, checkpointing)
        self.optimizer: Any = self.trainer.create_optimizer()
        self._scaler: Any = self.trainer.accelerator.scaler or torch.amp.GradScaler(enabled=False)
        self._loss_scale = FP16_LOSS_SCALE if self._scaler.is_enabled() else 1.0
        """Of single rows, whose gradients no scaler scales."""
        self.rate = float(self.trainer.args.learning_rate)
        self.rows = data.train.select_columns([key for key in KEYS if key in data.train.column_names])
        self.sources = name_sources(data.train[settings.data.source_column][:], settings.data.source_column)
        self.small = self.trainer.selector.small
        self.device = next(self.model.parameters()).device
        args = self.trainer.args
        self.accumulation = args.gradient_accumulation_steps
        self.pool = args.per_device_train_batch_size * self.accumulation
        self.kept = self.selection.kept_rows(self.pool, self.accumulation)
        self.at_once = ceil(self.kept / self.accumulation)
        """Rows of a micro-batch."""
        self._head = lean_head(self.model, self.selection)
        self._weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self._selectors: dict[SelectionConfig, CoresetSelector] = {}
        self._steps = 0
        self.seed = settings.seed
        self._places = _sample_places(self._weights)
        seen = MOST_WEIGHTS if self._places else sum(weight.numel() for weight in self._weights)
        self._sketch = draw_sketch(seen, SKETCH, self.device)

    # ---- Training ----

    def batches(self) -> Iterator[list[int]]:
        """Yield the rows of each step, as the run would train on without a selection pass."""
        sampler = MixtureBatchSampler(
            self.sources,
            self.kept,
            self.kept / self.pool,
            rank=0,
            world_size=1,
            seed=self.seed,
            small_sources=self.selection.small_sources,
            by_source=self.selection.by_source,
        )
        while True:
            yield from sampler

    def train(self, batches: Iterator[list[int]], steps: int) -> None:
        """Train for some more steps."""
        for rows in islice(batches, steps):
            self.step(rows)

    def step(self, rows: Sequence[int]) -> None:
        """Train on rows, those of similar length together."""
        self._steps += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, self._steps / WARM_UP)
        self._backward(rows, self.at_once)
        if self.trainer.args.max_grad_norm:
            self._scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._weights, self.trainer.args.max_grad_norm)
        self._update()

    def _update(self) -> None:
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()

    def _backward(self, rows: Sequence[int], most: int) -> None:
        """Add the gradients of the rows' mean loss, in micro-batches of at most so many rows."""
        ordered = sorted(rows, key=lambda row: -len(self.rows[row]["input_ids"]))
        for run in split_evenly(ordered, ceil(len(rows) / most)):
            torch.autograd.backward(self._scaler.scale(self._losses(run).sum() / len(rows)))

    def _losses(self, rows: Sequence[int]) -> Tensor:
        """Return the rows' mean losses (n,) float32."""
        batch = self.batch(rows)
        with self.trainer.accelerator.autocast():  # accelerate's around the forward begins only in `train`
            if self._head is not None:
                return self._head(self.model, batch)
            labels = batch.pop("labels")
            return example_losses(self.model(**batch).logits, labels)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return rows as a batch on the device."""
        collated = self.trainer.data_collator([self.rows[row] for row in rows])
        return {key: value.to(self.device) for key, value in collated.items()}

    # ---- Measuring ----

    def time_steps(self, sizes: Sequence[int], rows: Sequence[int], repeats: int) -> dict[int, Timing]:
        """Time steps of several sizes, all on the same rows, in turn; the weights stay and the optimizer is made anew.

        Small batches pad more, so each size is tried in micro-batches of the configured rows and of a quarter of them.

        Args:
            sizes: rows of a step.
            rows: row numbers, as many as the largest size.
            repeats: how often each is timed, after one that warms up; the median counts.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        tried = sorted(
            {(size, min(size, most)) for size in sizes for most in (self.at_once, max(1, self.at_once // 4))}
        )
        spent: dict[tuple[int, int], list[float]] = {each: [] for each in tried}
        for _ in range(repeats + 1):
            for size, most in tried:
                steps = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
                start = self._now()
                for step in steps:
                    self._backward(step, most)
                    self._update()
                spent[size, most].append((self._now() - start) / len(steps))
        self.trainer.optimizer = None
        self.optimizer = self.trainer.create_optimizer()
        medians = {each: float(np.median(times[1:])) for each, times in spent.items()}
        best = {
            size: min((most for held, most in tried if held == size), key=lambda m: medians[size, m]) for size in sizes
        }
        return {size: Timing(medians[size, most], most) for size, most in best.items()}

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def gradients(self, rows: Sequence[int]) -> np.ndarray:
        """Return the gradients of single rows at all trained weights, in the optimizer's metric, (n, d) float64."""
        scale = self._adam_scale() / self._loss_scale
        found = []
        with self._evaluating():
            for row in rows:
                loss = self._losses([row]).sum() * self._loss_scale
                parts = torch.autograd.grad(loss, self._weights, allow_unused=True)
                given = [torch.zeros_like(w) if g is None else g for g, w in zip(parts, self._weights, strict=True)]
                flat = self._seen(given) * scale
                found.append((flat if self._sketch is None else self._sketch.apply(flat[None])[0]).double().cpu())
        return np.stack([each.numpy() for each in found])

    def choose(self, config: SelectionConfig, pools: Sequence[Sequence[int]]) -> tuple[list[Choice], float]:
        """Let a selection choose from pools in turn; return its choices, and the median seconds of one.

        A pool comes in micro-batches of the configured rows, or of more if fewer rows are kept than it then has
        micro-batches, since each of them trains a row.
        """
        selector = self._selector(config)
        choices, seconds = [], []
        for rows in pools:
            slots = ceil(len(rows) * self.accumulation / self.pool)
            slots = min(slots, config.kept_rows(len(rows), 1))
            batches = [self.batch(run) for run in split_evenly(rows, slots)]
            start = self._now()
            with self.trainer.accelerator.autocast():
                coreset = selector.select(batches, [self.sources[row] for row in rows], dataset_index=list(rows))
            seconds.append(self._now() - start)
            selector.commit()
            choices.append(Choice(coreset.indices.numpy(), coreset.weights.double().numpy()))
        return choices, float(np.median(seconds))

    def _selector(self, config: SelectionConfig) -> CoresetSelector:
        """Return a selector that has seen nothing; one for all numbers of kept rows, since it logs what it compares."""
        alike = replace(config, keep=None, keep_count=None)
        if alike not in self._selectors:
            sizes, pad = self.trainer.source_sizes, self.trainer.selector.pad_token_id
            self._selectors[alike] = CoresetSelector(self.model, alike, sizes, pad_token_id=pad)
        selector = self._selectors[alike]
        selector.config = config
        selector.optimizer = self.optimizer
        selector.reset()
        return selector

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Without dropout, so that a row's gradient depends on the row alone."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def _adam_scale(self) -> Tensor | float:
        """Return the scale of Adam's metric, as `adam_scale` with a floor; 1 before the first step."""
        states = [self.optimizer.state.get(weight, {}) for weight in self._weights]
        if any("exp_avg_sq" not in state for state in states):
            return 1.0
        size = self._seen([state["exp_avg_sq"] for state in states]).sqrt()
        # A weight that rarely has a gradient, such as that of a rare token, would dominate.
        return (1 / (size + size.mean() * 1e-2)).sqrt()

    def _seen(self, parts: Sequence[Tensor]) -> Tensor:
        """Return values at all weights as one vector, at the sampled coordinates, float32."""
        flat = [part.reshape(-1).float() for part in parts]
        if self._places:
            flat = [part[places] for part, places in zip(flat, self._places, strict=True)]
        return torch.cat(flat)


def _sample_places(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return random coordinates of each weight, `MOST_WEIGHTS` in all in proportion; empty if there are no more."""
    total = sum(weight.numel() for weight in weights)
    if total <= MOST_WEIGHTS:
        return []
    ends = np.round(np.cumsum([weight.numel() for weight in weights]) / total * MOST_WEIGHTS).astype(int)
    counts = np.diff(ends, prepend=0)
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randint(weight.numel(), (int(count),), generator=draw).to(weight.device)
        for weight, count in zip(weights, counts, strict=True)
    ]
