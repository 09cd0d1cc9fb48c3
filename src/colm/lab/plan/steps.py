"""Measure what the parts of a training step allocate and compute, by running them without values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colm.config import SelectionConfig
from colm.features.adam import empty_history
from colm.features.selection_pass import GRADIENTS
from colm.lab.plan.counting import DryRun
from colm.lab.plan.kernels import gpu_kernels
from colm.lab.plan.shapes import Shapes
from colm.lab.plan.site import cut_layers, make_selector
from colm.losses import example_losses, mean_over_examples
from colm.selector import CoresetSelector
from colm.step.pool import IGNORE
from colm.types import Batch

TOKEN = 1
"""The id of every token; any value works."""


class Cost(NamedTuple):
    """The cost of a part of a step, excluding parameters and optimizer state."""

    peak: int  # bytes
    left: int  # bytes that remain afterwards, without gradients
    flops: int  # of matrix products and attention


class Rows(NamedTuple):
    """The rows to plan for: all of maximum length."""

    tokens: int  # T
    labelled: float = 1.0  # fraction of labeled tokens, the last ones of a row

    def batch(self, count: int) -> Batch:
        """Return a micro-batch of `count` rows (count, T); the last row is one token shorter, so there is padding."""
        ids = torch.full((count, self.tokens), TOKEN)
        mask = torch.ones_like(ids)
        if count > 1:
            mask[-1, -1] = 0
        labels = ids.masked_fill(mask == 0, IGNORE)
        labels[:, : self.tokens - max(2, round(self.labelled * self.tokens))] = IGNORE
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Rehearsal:
    """Runs the parts of a step on a model of fake tensors.

    Args:
        shapes: the model.
        selection: how the coreset is chosen, and which loss is used.
        rows: the rows to plan for.
        device: ``cuda`` or ``cpu``, whose kernels to count.
        adam: whether the optimizer has Adam moments, which normalize features.
    """

    def __init__(
        self, shapes: Shapes, selection: SelectionConfig, rows: Rows, *, device: str = "cuda", adam: bool = True
    ) -> None:
        self.shapes = shapes
        self.rows = rows
        self.device = device
        self.selection = replace(selection, small_sources="none", balance=0.0, warmup_steps=0, every=1)
        group: dict[str, Any] = {"params": []} | ({"betas": (0.9, 0.999), "eps": 1e-8} if adam else {})
        self._optimizer = SimpleNamespace(param_groups=[group])
        self._selector: CoresetSelector | None = None

    def train(self, count: int, *, accumulated: bool) -> Cost:
        """Run a micro-batch of `count` rows forward and backward.

        Args:
            count: number of rows.
            accumulated: gradients of an earlier micro-batch exist, as from the second micro-batch on.
        """
        batch = self.rows.batch(count)
        with self._dry_run() as dry:
            start = dry.start()
            if accumulated:
                for parameter in self.shapes.trained:
                    parameter.grad = torch.zeros_like(parameter)
            torch.autograd.backward(self._loss(batch))
            for parameter in self.shapes.trained:
                parameter.grad = None
            return Cost(dry.peak - start, dry.live - start, dry.flops)

    def select(self, count: int, micro_batches: int, *, short: bool = False) -> Cost:
        """Choose a coreset from a pool, as in every step but the first.

        Args:
            count: rows per micro-batch of the pool.
            micro_batches: number of micro-batches in the pool.
            short: keep only the last layers, which is faster and gives the same memory: earlier layers keep nothing
                in memory.
        """
        if self.selection.features == "none":
            return Cost(0, 0, 0)
        batches = [self.rows.batch(count) for _ in range(micro_batches)]
        with ExitStack() as stack:
            dry = stack.enter_context(self._dry_run())
            if self._selector is None:
                self._selector = make_selector(self.shapes.model, self.selection, self._optimizer)
            if short:
                stack.enter_context(cut_layers(self.shapes.model, self._selector.site))
            self._selector.reset()
            start = dry.start()
            site = self._selector.site
            if self.selection.features in GRADIENTS and site is not None:
                self._selector.state.history = empty_history(site.dim, torch.device("cpu"))
            self._selector.select(batches, ["pool"] * (count * micro_batches))
            return Cost(dry.peak - start, dry.live - start, dry.flops)

    def _loss(self, batch: Batch) -> Tensor:
        """Return the loss as the trainers compute it, with the tensors that they hold meanwhile."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        labels = batch["labels"]
        if self.selection.loss == "token":
            loss: Tensor = self.shapes.model(**inputs, labels=labels, use_cache=False).loss
            return loss
        outputs = self.shapes.model(**inputs, use_cache=False)
        losses = example_losses(outputs.logits, labels)
        return mean_over_examples(losses, labels, num_examples=len(labels))

    @contextmanager
    def _dry_run(self) -> Iterator[DryRun]:
        with ExitStack() as stack:
            if self.device == "cuda":
                stack.enter_context(gpu_kernels())
            yield stack.enter_context(DryRun(self.shapes.fake))
