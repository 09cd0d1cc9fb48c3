"""Memory and time of a run, for training the pool, its coreset's rows, and for the coreset step."""

from __future__ import annotations

from typing import Any, NamedTuple

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.plan.memory import optimizer_bytes, show_memory
from colm.plan.shapes import ModelSpec, build_shapes
from colm.plan.steps import Cost, Rehearsal, Rows

RESERVE = 0.1
"""Share of the memory that is left free, for CUDA's own context, for fragmentation, and for what the plan is wrong by."""

TRACED_PLACES = 2**28
"""Places of an attention mask up to which a micro-batch is run through; larger ones are on the line of smaller ones."""

TRACED_POOL = 512
"""Rows of a pool up to which its selection is run through."""


class Request(NamedTuple):
    """What to plan."""

    model: ModelSpec
    selection: SelectionConfig
    rows: Rows
    micro_batch: int  # rows of the pool in a micro-batch, training.per_device_train_batch_size
    micro_batches: int  # of a step, training.gradient_accumulation_steps
    optimizer: str = "adamw_torch_fused"
    device: str = "cuda"  # or cpu: whose kernels


class Way(NamedTuple):
    """One way to train a step, on one device. Sizes in bytes.

    Selection and training come one after the other, so the peak holds the larger of the two.
    """

    micro_batch: int  # rows of the largest micro-batch that is trained
    rows: int  # trained in a step
    parameters: int
    optimizer: int
    gradients: int
    activations: int  # at the peak of training, with all that is alive beside the parts above
    selection: int  # at the peak of the selection, 0 where there is none
    flops: int  # of a step

    @property
    def peak(self) -> int:
        """The most that is allocated at one time."""
        return self.parameters + self.optimizer + max(self.gradients + self.activations, self.selection)


class Outlook:
    """Finds what ways of training take, for any sizes of the pool.

    Args:
        request: the model and the run; its sizes are only a default.
        config: of the model; default that of its name.

    Raises:
        ConfigError: see `build_shapes` and `optimizer_bytes`.
        UnsupportedModelError: the model has no value projection that can be found.
    """

    def __init__(self, request: Request, config: Any = None) -> None:
        self.request = request
        self.shapes = build_shapes(request.model, config)
        self._optimizer, self._within_step = optimizer_bytes(request.optimizer, self.shapes.trained)
        adam = any(name in request.optimizer for name in ("adam", "lion"))  # lion has betas, but no eps
        self._rehearsal = Rehearsal(
            self.shapes,
            request.selection,
            request.rows,
            device=request.device,
            adam=adam and "lion" not in request.optimizer,
        )
        self._trained: dict[tuple[int, bool], Cost] = {}
        self._selected: dict[tuple[int, int], Cost] = {}

    @property
    def held(self) -> int:
        """Bytes of parameters, gradients and optimiser state, which any training needs."""
        return self.shapes.parameters + self.shapes.gradients + self._optimizer

    def require(self, memory: int) -> None:
        """Check that the memory holds more than weights.

        Raises:
            ConfigError: it does not.
        """
        if memory * (1 - RESERVE) <= self.held:
            raise ConfigError(
                f"--gpu-memory of {show_memory(memory)} GiB, of which {RESERVE:.0%} stay free, does not hold the model: "
                f"parameters {show_memory(self.shapes.parameters)} GiB, gradients "
                f"{show_memory(self.shapes.gradients)} GiB, optimiser {show_memory(self._optimizer)} GiB, "
                f"{show_memory(self.held)} GiB in all, so it must be above {show_memory(self.held / (1 - RESERVE))} GiB. "
                "Train with LoRA, in bfloat16, with an optimiser that keeps less (training.optim=adamw_bnb_8bit), or a "
                "smaller model."
            )

    def pool(self, micro_batch: int, micro_batches: int) -> Way:
        """Return what ordinary training of the whole pool takes."""
        return self._ordinary(micro_batch, micro_batch * micro_batches, micro_batches)

    def coreset_rows(self, micro_batch: int, micro_batches: int) -> Way:
        """Return what ordinary training takes of as many rows as the pool's coreset has."""
        rows = self.kept(micro_batch, micro_batches)
        return self._ordinary(-(-rows // micro_batches), rows, micro_batches)

    def coreset_step(self, micro_batch: int, micro_batches: int, *, time: bool = True) -> Way:
        """Return what selecting a coreset and training it take.

        Args:
            micro_batch: rows of the pool in a micro-batch.
            micro_batches: of a step.
            time: count operations, for which the whole model has to be run through.
        """
        way = self.coreset_rows(micro_batch, micro_batches)
        selection = self._select(micro_batch, micro_batches)
        flops = 0
        if time:
            some = min(2, micro_batches)
            flops = self._rehearsal.select(micro_batch, some).flops * micro_batches // some
        return way._replace(
            activations=way.activations + selection.left, selection=selection.peak, flops=way.flops + flops
        )

    def kept(self, micro_batch: int, micro_batches: int) -> int:
        """Return the rows of a pool's coreset, the most where a schedule changes it."""
        pool, selection = micro_batch * micro_batches, self.request.selection
        steps = [step for step, _ in selection.keep_schedule] or [0]
        return max(selection.kept_rows(pool, micro_batches, step=step) for step in steps)

    def _ordinary(self, micro_batch: int, rows: int, micro_batches: int) -> Way:
        cost = self._train(micro_batch, micro_batches > 1)
        peak = max(cost.peak, self.shapes.gradients + self._within_step)
        return Way(
            micro_batch=micro_batch,
            rows=rows,
            parameters=self.shapes.parameters,
            optimizer=self._optimizer,
            gradients=self.shapes.gradients,
            activations=peak - self.shapes.gradients,
            selection=0,
            flops=cost.flops * rows // micro_batch,
        )

    def _train(self, rows: int, accumulated: bool) -> Cost:
        key = (rows, accumulated)
        if key not in self._trained:
            if rows > 2 and rows * self.request.rows.tokens**2 > TRACED_PLACES:
                held = [count for count, also in self._trained if also == accumulated and count < rows]
                most = max(2, TRACED_PLACES // self.request.rows.tokens**2, *held)
                self._trained[key] = _on_line(rows, *((n, self._train(n, accumulated)) for n in (most // 2, most)))
            else:
                self._trained[key] = self._rehearsal.train(rows, accumulated=accumulated)
        return self._trained[key]

    def _select(self, rows: int, micro_batches: int) -> Cost:
        key = (rows, micro_batches)
        if key not in self._selected:
            most = max(2, TRACED_PLACES // self.request.rows.tokens**2)
            if rows > most:
                points = ((n, self._select(n, micro_batches)) for n in (most // 2, most))
                self._selected[key] = _on_line(rows, *points)
            elif micro_batches > 3 and rows * micro_batches > TRACED_POOL:
                most = max(3, TRACED_POOL // rows)
                points = ((n, self._select(rows, n)) for n in (most - 1, most))
                self._selected[key] = _on_line(micro_batches, *points)
            else:
                self._selected[key] = self._rehearsal.select(rows, micro_batches, short=True)
        return self._selected[key]


def _on_line(at: int, first: tuple[int, Cost], second: tuple[int, Cost]) -> Cost:
    """Return the cost at a size on the line through those at two others."""
    (x, low), (y, high) = first, second
    values = [int(b + (b - a) * (at - y) / (y - x)) for a, b in zip(low, high, strict=True)]
    return Cost(*values)
