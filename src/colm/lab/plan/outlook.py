"""Predict the memory and time of training on the pool, on as many rows as its coreset, and of the coreset step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.lab.plan.fully_shard import find_units
from colm.lab.plan.memory import show_memory
from colm.lab.plan.shapes import ModelSpec, build_shapes
from colm.lab.plan.sharding import Sharding, hold, padded_bytes
from colm.lab.plan.steps import Cost, Rehearsal, Rows
from colm.lab.plan.traffic import Model, Selection, Traffic, count_traffic

RESERVE = 0.1
"""Fraction of memory left free for the CUDA context, fragmentation, and errors of the plan."""

LARGEST_RUN = 2**24
"""Maximum (real) tokens of a micro-batch or a pool to run, apart from a few rows."""

MOST_RUN = 256
"""Maximum rows of a micro-batch to run; larger ones are extrapolated."""

LARGEST_POOL = 512
"""Maximum rows of a pool whose selection is run."""


class Request(NamedTuple):
    """The run to plan."""

    model: ModelSpec
    selection: SelectionConfig
    rows: Rows
    micro_batch: int  # rows of the pool in a micro-batch, training.per_device_train_batch_size
    micro_batches: int  # per step, training.gradient_accumulation_steps
    optimizer: str = "adamw_torch_fused"
    device: str = "cuda"  # or cpu: which kernels to count
    sharding: Sharding | None = None  # None for one GPU


class Way(NamedTuple):
    """One way to train a step, on one device. Sizes in bytes.

    Selection and training run one after the other, so the peak holds the larger of the two.
    """

    micro_batch: int  # rows of the largest trained micro-batch
    rows: int  # trained per step
    parameters: int
    optimizer: int
    gradients: int  # reduced ones, if they are sharded
    activations: int  # at the peak of training, with everything live except the other parts
    selection: int  # at the peak of the selection or of a noise measurement; 0 without either
    flops: int  # per step, with a noise measurement's share
    logits: int = 0  # of the activations: what has an entry for each token of the vocabulary
    gathered: int = 0  # at the peak of training, other ranks' weights
    unreduced: int = 0  # at the peak of training, whole gradients of sharded weights and buffers for communication
    passing: int = 0  # of the selection: other ranks' weights
    noise: int = 0  # of the operations: a noise measurement's share

    @property
    def peak(self) -> int:
        """The peak allocation in bytes."""
        training = self.gradients + self.gathered + self.unreduced + self.activations
        return self.parameters + self.optimizer + max(training, self.selection)


class Outlook:
    """Predicts the cost of ways of training, for any pool size.

    Args:
        request: the model and the run; its sizes are only defaults.
        config: the model's configuration (default: loaded by name).

    Attributes:
        parts: what a GPU holds all the time.

    Raises:
        ConfigError: see `build_shapes` and `optimizer_bytes`.
        UnsupportedModelError: no value projection can be found in the model.
    """

    def __init__(self, request: Request, config: Any = None) -> None:
        self.request = request
        self.shapes = build_shapes(request.model, config)
        self.parts = hold(self.shapes, request.optimizer, request.sharding)
        adam = any(name in request.optimizer for name in ("adam", "lion"))  # Lion has betas, but no eps
        self._rehearsal = Rehearsal(
            self.shapes,
            request.selection,
            request.rows,
            device=request.device,
            adam=adam and "lion" not in request.optimizer,
            sharding=request.sharding,
        )
        self._trained: dict[tuple[int, bool], Cost] = {}
        self._selected: dict[tuple[int, int], Cost] = {}
        self._measured: dict[tuple[int, int], Cost] = {}

    @property
    def held(self) -> int:
        """Bytes of parameters, gradients and optimizer state, which all training needs."""
        return self.parts.weights + self.parts.gradients + self.parts.optimizer

    def require(self, memory: int) -> None:
        """Check that parameters, gradients and optimizer state fit in memory.

        Raises:
            ConfigError: they do not fit.
        """
        if memory * (1 - RESERVE) <= self.held:
            least = show_memory(self.held / (1 - RESERVE))
            parts, alone = self.parts, self.request.sharding is None
            each = "" if alone else " on each"
            raise ConfigError(
                f"--gpu-memory of {show_memory(memory)} GiB, with {RESERVE:.0%} kept free, cannot hold the model: "
                f"parameters {show_memory(parts.weights)} GiB, gradients {show_memory(parts.gradients)} GiB and "
                f"optimizer {show_memory(parts.optimizer)} GiB need more than {least} GiB{each}. "
                "Train with LoRA, in bfloat16, with a smaller optimizer (training.optim=adamw_bnb_8bit), use a smaller "
                f"model, or {'shard it (--gpus 8 --shard fsdp2)' if alone else 'shard it over more GPUs'}."
            )

    def pool(self, micro_batch: int, micro_batches: int) -> Way:
        """Return the cost of ordinary training on the whole pool."""
        return self._ordinary(micro_batch, micro_batch * micro_batches, micro_batches)

    def coreset_rows(self, micro_batch: int, micro_batches: int) -> Way:
        """Return the cost of ordinary training on as many rows as the pool's coreset."""
        rows = self.kept(micro_batch, micro_batches)
        return self._ordinary(-(-rows // micro_batches), rows, micro_batches)

    def coreset_step(self, micro_batch: int, micro_batches: int, *, time: bool = True) -> Way:
        """Return the cost of selecting a coreset and training on it.

        Args:
            micro_batch: rows of the pool in a micro-batch.
            micro_batches: number of micro-batches per step.
            time: count operations, which requires running the whole model.
        """
        way = self.coreset_rows(micro_batch, micro_batches)
        flops = noise = 0
        if time:
            rows, some = min(micro_batch, self._most), min(2, micro_batches)
            whole = self._rehearsal.select(rows, some)
            flops = whole.flops * micro_batch * micro_batches // (rows * some)
            self._selected.setdefault((rows, some), whole)  # memory is the same with fewer layers
            every = max(1, self.request.selection.noise_every)
            measured = self._measured[rows, some] = self._rehearsal.measure_noise(rows, some)
            noise = measured.flops * way.rows // (self.kept(rows, some) * every)
        passes = [self._at_pool_size(self._select, micro_batch, micro_batches)]
        if self.request.selection.features != "exact":  # else the selection takes the same pass, over more rows
            passes.append(self._at_pool_size(self._measure_noise, micro_batch, micro_batches))
        most = max(passes)
        meanwhile = self.parts.gathered + self.parts.lasting
        return way._replace(
            activations=way.activations + passes[0].left,
            selection=most.peak + meanwhile if most.peak else 0,
            flops=way.flops + flops + noise,
            passing=most.gathered + self.parts.gathered if most.peak else 0,
            noise=noise,
        )

    def traffic(self, micro_batch: int, micro_batches: int, sources: int) -> Traffic | None:
        """Return what a coreset step sends over the network; None with one GPU.

        Args:
            micro_batch: rows of the pool in a micro-batch of a GPU.
            micro_batches: number of micro-batches per step of a GPU.
            sources: from which rows are picked, each on its own.
        """
        request, sharding = self.request, self.request.sharding
        if sharding is None:
            return None
        selection, gpus = request.selection, sharding.gpus
        *layers, _ = find_units(self.shapes.model)
        model = Model(
            weights=padded_bytes(self.shapes.model.parameters(), gpus),
            layers=sum(padded_bytes(weights, gpus) for _, weights in layers),
            trained=padded_bytes(self.shapes.trained, gpus),
        )
        pool = Selection(
            rows=micro_batch * micro_batches * gpus,
            kept=self.kept(micro_batch, micro_batches) * gpus,
            tokens=request.rows.tokens,
            sources=sources if selection.by_source else 1,
            coordinates=selection.coordinates,
            dim=self._rehearsal.feature_size,
            forwards=micro_batches,
            noise_every=selection.noise_every,
        )
        return count_traffic(sharding, model, pool, micro_batches)

    def kept(self, micro_batch: int, micro_batches: int) -> int:
        """Return the rows of a pool's coreset, the maximum over a schedule."""
        pool, selection = micro_batch * micro_batches, self.request.selection
        steps = [step for step, _ in selection.keep_schedule] or [0]
        return max(selection.kept_rows(pool, micro_batches, step=step) for step in steps)

    def _ordinary(self, micro_batch: int, rows: int, micro_batches: int) -> Way:
        cost, held = self._train(micro_batch, micro_batches > 1), self.parts
        sharding, step = self.request.sharding, held.gradients + held.within_step
        peak, gradients = cost.peak, held.gradients
        if sharding is not None and sharding.engine == "fsdp2":
            gradients = cost.reduced  # at the peak; others are not reduced yet
        elif sharding is not None and sharding.splits_gradients:
            peak += gradients  # the rehearsal holds none
        if peak < step:
            peak, gradients = step, held.gradients
            cost = cost._replace(logits=0, gathered=0, unreduced=0)
        return Way(
            micro_batch=micro_batch,
            rows=rows,
            parameters=held.weights,
            optimizer=held.optimizer,
            gradients=gradients,
            activations=peak - gradients - cost.gathered - cost.unreduced,
            selection=0,
            flops=cost.flops * rows // micro_batch,
            logits=cost.logits,
            gathered=cost.gathered + held.gathered,
            unreduced=cost.unreduced + held.unreduced,
        )

    def _train(self, rows: int, accumulated: bool) -> Cost:
        """Return the cost of a micro-batch: measured at the requested size, extrapolated on lines elsewhere.

        The peak is the largest of the live bytes at several moments, each of which grows linearly with the rows. So two
        lines are fitted, one to small and one to large numbers of rows, and the higher one counts. The attention of
        joined rows grows with the square of their tokens, so they are measured at any size that can run.
        """
        few, many = self._own
        most = self._most
        if rows <= most and (rows in (few, many) or self._rehearsal.joined):
            return self._train_run(rows, accumulated)
        pairs = [(most // 2, most)]
        if few < many < most:
            pairs.append((few, many))
        lines = [_on_line(rows, *((n, self._train_run(n, accumulated)) for n in pair)) for pair in pairs]
        return Cost(*map(max, zip(*lines, strict=True)))

    def _train_run(self, rows: int, accumulated: bool) -> Cost:
        key = (rows, accumulated)
        if key not in self._trained:
            self._trained[key] = self._rehearsal.train(rows, accumulated=accumulated)
        return self._trained[key]

    def _at_pool_size(self, run: Callable[[int, int], Cost], rows: int, micro_batches: int) -> Cost:
        """Return the cost of a pass over a pool: measured at the requested sizes, on a plane through three others."""
        request = self.request
        own = (request.micro_batch, request.micro_batches)
        if own[0] > self._most or own[0] * own[1] > min(LARGEST_POOL, LARGEST_RUN // request.rows.tokens):
            own = (min(own[0], 4), min(own[1], 4))
        if (rows, micro_batches) == own:
            return run(*own)
        b, m = own
        fewer_rows = b // 2 if b > 1 else 2
        fewer_batches = m // 2 if m > 1 else 2
        sizes = ((b, m), (fewer_rows, m), (b, fewer_batches))
        base, by_batch, by_pool = (np.array(run(*size)) for size in sizes)
        # Some memory grows with the rows of a micro-batch, some with those of the pool.
        each_pool_row = (base - by_pool) / (b * (m - fewer_batches))
        each_row = (base - by_batch - each_pool_row * m * (b - fewer_rows)) / (b - fewer_rows)
        more_rows, more_pool_rows = rows - b, rows * micro_batches - b * m
        found = base + np.maximum(0, each_row) * more_rows + np.maximum(0, each_pool_row) * more_pool_rows
        return Cost(*(max(0, int(value)) for value in found))

    def _select(self, rows: int, micro_batches: int) -> Cost:
        key = (rows, micro_batches)
        if key not in self._selected:
            self._selected[key] = self._rehearsal.select(rows, micro_batches, short=True)
        return self._selected[key]

    def _measure_noise(self, rows: int, micro_batches: int) -> Cost:
        key = (rows, micro_batches)
        if key not in self._measured:
            self._measured[key] = self._rehearsal.measure_noise(rows, micro_batches, short=True)
        return self._measured[key]

    @property
    def _own(self) -> tuple[int, int]:
        """The requested rows per micro-batch, of the coreset and of the pool."""
        request = self.request
        kept = self.kept(request.micro_batch, request.micro_batches)
        return -(-kept // request.micro_batches), request.micro_batch

    @property
    def _most(self) -> int:
        """Maximum rows of a micro-batch to run; the lines need four."""
        return min(MOST_RUN, max(4, LARGEST_RUN // self.request.rows.tokens))


def _on_line(at: int, first: tuple[int, Cost], second: tuple[int, Cost]) -> Cost:
    """Return the cost at a size, on the line through two other sizes."""
    (x, low), (y, high) = first, second
    return Cost(*(max(0, int(b + (b - a) * (at - y) / (y - x))) for a, b in zip(low, high, strict=True)))
