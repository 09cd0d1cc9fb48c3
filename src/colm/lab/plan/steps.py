"""Measure what the parts of a training step allocate and compute, by running them without values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colm.config import SelectionConfig
from colm.errors import UnsupportedModelError
from colm.features.adam import empty_history
from colm.features.selection_pass import GRADIENTS
from colm.lab.plan.counting import LOGITS, DryRun, gpu_kernels
from colm.lab.plan.fully_shard import GATHERED, REDUCED, UNREDUCED, FullyShard, Sharded
from colm.lab.plan.selectors import LongestRows, cut_layers, make_selector
from colm.lab.plan.shapes import Shapes
from colm.lab.plan.sharding import Sharding
from colm.lean import LeanHead, lean_head
from colm.losses import example_losses, mean_over_examples
from colm.selector import CoresetSelector
from colm.step.pool import IGNORE, ROWS, Pool
from colm.types import Batch

TOKEN = 1
"""The id of every token; any value works."""


class Cost(NamedTuple):
    """The cost of a part of a step, excluding parameters and optimizer state."""

    peak: int  # bytes
    left: int  # bytes that remain afterwards, without gradients
    flops: int  # of matrix products and attention
    logits: int = 0  # bytes at the peak, of it
    gathered: int = 0  # the same of other ranks' weights
    unreduced: int = 0  # the same of whole gradients and of buffers, while gradients are sharded
    reduced: int = 0  # the same of reduced gradients

    @classmethod
    def of(cls, dry: DryRun, start: int) -> Cost:
        """Return what a dry run has counted since its live bytes were `start`."""
        parts = (dry.parts[name] for name in (LOGITS, GATHERED, UNREDUCED, REDUCED))
        return cls(dry.peak - start, dry.live - start, dry.flops, *parts)


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
        sharding: how GPUs share the model, or None.
    """

    def __init__(
        self,
        shapes: Shapes,
        selection: SelectionConfig,
        rows: Rows,
        *,
        device: str = "cuda",
        adam: bool = True,
        sharding: Sharding | None = None,
    ) -> None:
        self.shapes = shapes
        self.rows = rows
        self.device = device
        self.sharding = sharding
        self._sharded = Sharded.of(shapes)
        self.selection = replace(selection, small_sources="none", balance=0.0, warmup_steps=0, every=1)
        group: dict[str, Any] = {"params": []} | ({"betas": (0.9, 0.999), "eps": 1e-8} if adam else {})
        self._optimizer = SimpleNamespace(param_groups=[group])
        self._selector: CoresetSelector | None = None
        self._measures: CoresetSelector | None = None

    def train(self, count: int, *, accumulated: bool) -> Cost:
        """Run a micro-batch of `count` rows forward and backward.

        Args:
            count: number of rows.
            accumulated: gradients of an earlier micro-batch exist, as from the second micro-batch on.
        """
        batch = self.rows.batch(count)
        if self.joined:
            batch = Pool(batch).join(range(count))
        with self._dry_run() as dry:
            head = self._head
            start = dry.start()
            with self._gradients(dry, accumulated=accumulated):
                torch.autograd.backward(self._loss(batch, head))
                cost = Cost.of(dry, start)
            return cost._replace(left=dry.live - start)

    @contextmanager
    def _gradients(self, dry: DryRun, *, accumulated: bool) -> Iterator[None]:
        """Hold the gradients of a backward inside the block as the engine does, then free them."""
        sharding, trained = self.sharding, self.shapes.trained
        if sharding is not None and sharding.engine == "fsdp2":
            with FullyShard(dry, self._sharded, sharding, accumulated=accumulated).running():
                yield
            return
        handles = []
        if sharding is not None and sharding.splits_gradients:  # copied into a buffer at once
            for weight in trained:
                handles.append(weight.register_post_accumulate_grad_hook(_free_gradient))  # type: ignore[no-untyped-call]
        elif accumulated:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter in trained:
                parameter.grad = None

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
            return self._choose(self._selector, batches, dry, start)

    def measure_noise(self, count: int, micro_batches: int, *, short: bool = False) -> Cost:
        """Measure the gradient noise scale of as many rows as a pool's coreset has.

        Args:
            count: rows per micro-batch of the pool.
            micro_batches: number of micro-batches in the pool.
            short: see `select`.

        Returns:
            The cost of one measurement; 0 where there is none: it is turned off, an engine splits the optimizer's
            moments, or no value projection can be found.
        """
        if not self.selection.noise_every or (self.sharding is not None and self.sharding.splits_moments):
            return Cost(0, 0, 0)
        batches = [self.rows.batch(count) for _ in range(micro_batches)]
        with ExitStack() as stack:
            dry = stack.enter_context(self._dry_run())
            if self._measures is None:
                # The meter reads neither the features nor the order, which exclude each other.
                config = replace(self.selection, features="exact", order="random", noise_every=1)
                try:
                    self._measures = make_selector(self.shapes.model, config, None)
                except UnsupportedModelError:
                    return Cost(0, 0, 0)
                self._measures.chooser = LongestRows()
            if short:
                stack.enter_context(cut_layers(self.shapes.model, self._measures.site))
            self._measures.reset()
            self._measures.state.step = 1
            return self._choose(self._measures, batches, dry, dry.start())

    @property
    def feature_size(self) -> int:
        """D of the features that rows are picked by, 0 without any; known after a selection has run."""
        if self.selection.features == "none" or self._selector is None:
            return 0
        site = self._selector.site
        if self.selection.features in GRADIENTS and site is not None:
            return site.dim
        return int(self.shapes.model.config.get_text_config().hidden_size)

    def _choose(self, selector: CoresetSelector, batches: list[Batch], dry: DryRun, start: int) -> Cost:
        """Run a selector on a pool, on sharded weights as the engine gathers them."""
        sources = ["pool"] * sum(len(batch["labels"]) for batch in batches)
        with ExitStack() as stack:
            if self.sharding is not None and self.sharding.engine == "fsdp2":
                stack.enter_context(FullyShard(dry, self._sharded, self.sharding, accumulated=False).running())
            selector.select(batches, sources)
            cost = Cost.of(dry, start)
        return cost._replace(left=dry.live - start)

    def _loss(self, batch: Batch, head: LeanHead | None) -> Tensor:
        """Return the loss as the trainers compute it, with the tensors that they hold meanwhile."""
        inputs = {key: value for key, value in batch.items() if key != "labels"} | {"use_cache": False}
        labels, bounds = batch["labels"], batch.get(ROWS)
        model, tokens = self.shapes.model, self.selection.loss == "token"
        if head is not None:
            with head.reading(labels, bounds):
                output = model(**inputs)
                losses = head.token_losses(output) if tokens else head.row_losses(output)
        elif tokens:
            loss: Tensor = model(**inputs, labels=labels).loss
            return loss
        else:
            losses = example_losses(model(**inputs).logits, labels, bounds)
        return losses.mean() if tokens else mean_over_examples(losses, labels, num_examples=len(losses))

    @cached_property
    def joined(self) -> bool:
        """Whether training joins rows. A model that runs on them is taken to keep them apart: there are no values."""
        if not self.selection.padding_free:
            return False
        batch = Pool(self.rows.batch(2)).join(range(2))
        try:
            with self._dry_run(), torch.no_grad():
                self.shapes.model(**{key: value for key, value in batch.items() if key != "labels"})
        except Exception:  # modeling code raises errors of any kind
            return False
        return True

    @cached_property
    def _head(self) -> LeanHead | None:
        """The head that training uses. Read it first inside a dry run, before what is counted."""
        return lean_head(self.shapes.model, self.selection, check=False)

    @contextmanager
    def _dry_run(self) -> Iterator[DryRun]:
        with ExitStack() as stack:
            if self.device == "cuda":
                stack.enter_context(gpu_kernels())
            yield stack.enter_context(DryRun(self.shapes.fake, self.shapes.vocabulary))


def _free_gradient(weight: Tensor) -> None:
    weight.grad = None
