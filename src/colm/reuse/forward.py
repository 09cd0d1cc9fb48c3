"""Train the kept rows from the selection pass: store its layers' inputs and start the checkpoints from them.

    begin      a new pool arrives: drop any state of the previous step
    recording  the selection pass runs: store each layer's input, and the last layer's output
    keep       the picks are known: assemble the kept rows' states into training micro-batches, drop the rest
    (training) a forward of one of these micro-batches is recognized: each layer's checkpoint returns the next layer's
               stored input, and the backward reruns the layer from its own stored input
    end        the optimizer has stepped: restore the layers' own checkpoint function

Any other forward, such as an evaluation or a step without a selection pass, uses the ordinary checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from colm.errors import ConfigError
from colm.features.capture import read_hidden, undisturbed, watched_calls
from colm.features.precision import Precision
from colm.features.site import unwrap
from colm.reuse.checks import check_checkpointing, check_reuse
from colm.reuse.known import KnownForward
from colm.reuse.recording import Recording
from colm.step.pool import Pool
from colm.step.sharding import is_hooked, missing_forwards
from colm.types import Batch

logger = logging.getLogger(__name__)

FUNCTION = "_gradient_checkpointing_func"
"""The attribute through which transformers' layers call their checkpoint."""

NOT_FOR_LAYERS = ("labels", "num_items_in_batch")
"""Forward arguments that do not affect the hidden states."""

UNKNOWN = (
    "No training forward in this step matched a micro-batch from `take` with unchanged weights, so reuse_forward=True "
    "saved nothing. Pass all tensors of a micro-batch to the model, and take one optimizer step per selection. (This "
    "warning is shown once.)"
)

HOOKED = (
    "%s has a hook. With reuse_forward=True, hooks inside layers run in the selection pass and in the backward, not in "
    "the training forward: their changes are trained, but a loss computed from the values they see has no gradient. "
    "(This warning is shown once.)"
)


class ForwardReuse:
    """The reusable forward of one step, from its selection pass to the optimizer step.

    Args:
        model: the model as trained; gradient checkpointing must be on by the first step.
        offload: keep states in host memory.

    Raises:
        ConfigError, UnsupportedModelError: see `check_reuse`.
    """

    def __init__(self, model: nn.Module, *, offload: bool) -> None:
        self.layers = check_reuse(model)
        self._model = model
        self._caller = unwrap(model)
        self._offload = offload
        self._recording: Recording | None = None
        self._keys: list[str] = []
        self._precision: Precision | None = None
        self._parts: dict[str, int] = {}
        self._trained: list[Tensor] = []  # weights of this step: FSDP2 puts others in their place while it gathers them
        self._weights = 0  # number of writes to the trained weights
        self._waiting: list[tuple[Batch, list[Tensor]]] = []
        self._current: KnownForward | None = None
        self._installed = ExitStack()
        self._recognized = self._warned = False
        self._checked: dict[str, tuple[Tensor, ...]] = {}
        self._hooks: list[tuple[int, ...]] = []
        self._hooked: set[str] = set()
        self._told = False

    def begin(self, pool: Pool) -> None:
        """Drop the previous step's state, and check what may have changed since.

        Raises:
            ConfigError: gradient checkpointing is off, or the pool is padded on the left.
        """
        self.end(warn=False)
        check_checkpointing(self.layers)
        if pool.side == "left":
            raise ConfigError(
                "The batches are padded on the left, so a token's position depends on the other rows of its batch, and "
                "reuse_forward=True cannot train from the selection pass; pad on the right "
                '(tokenizer.padding_side = "right"), or set reuse_forward=False.'
            )
        hooks = [(id(module), *module._forward_hooks, *module._forward_pre_hooks) for module in self._caller.modules()]
        if hooks != self._hooks:  # check again what they do
            self._checked.clear()
            self._hooks = hooks
            self._find_hooked()
        self._keys = [key for key, value in pool.batches[0].items() if isinstance(value, Tensor) and key != "labels"]
        self._trained = [parameter for parameter in self._caller.parameters() if parameter.requires_grad]
        self._weights = self._count_writes()
        self._recording = Recording(self.layers, offload=self._offload)

    def recording(self, groups: list[list[int]]) -> Any:
        """Return a context that records one forward per group of row positions."""
        assert self._recording is not None
        return self._recording.watch(groups)

    def keep(
        self, pool: Pool, runs: Sequence[list[int]], batches: Sequence[Batch], *, held: int, max_tokens: int
    ) -> None:
        """Assemble the kept rows' states for training, and drop all others.

        Rows that the pass did not run (from small sources or another rank) run their forward here instead of in
        training. Does nothing if there was no pass.

        Args:
            pool: this rank's rows, then the rows received from other ranks.
            runs: row positions of each micro-batch.
            batches: the micro-batches, padded on the right.
            held: number of the pool's rows that are this rank's own.
            max_tokens: padded tokens per forward of rows that the pass did not run.
        """
        recording, self._recording = self._recording, None
        if recording is None:
            return
        recording.where = {position: place for position, place in recording.where.items() if position < held}
        passed = recording.precision is not None
        missing = [position for run in runs for position in run if position not in recording.where] if passed else []
        groups = list(pool.group(missing, max_tokens))
        more = missing_forwards(self._model, len(groups), pool.device)
        with recording.watch(groups):
            for group in groups:
                self._run(pool, group)
        for _ in range(more):
            self._run(pool, pool.by_length(range(len(pool)))[-1:])
        if not passed:
            return
        self._precision, self._parts = recording.precision, recording.parts
        widths = [batch["input_ids"].shape[1] for batch in batches]
        gathered = recording.gather(runs, widths)
        self._waiting = [
            ({key: batch[key] for key in self._keys}, states) for batch, states in zip(batches, gathered, strict=True)
        ]
        self._install()

    def _run(self, pool: Pool, rows: Sequence[int]) -> None:
        batch = pool.collate(rows, side="right")
        with undisturbed(self._model):
            read_hidden(self._model, {key: batch[key] for key in (*self._keys, "labels")})

    def end(self, *, warn: bool = True) -> None:
        """Drop all stored states, and restore the layers' own checkpoint function."""
        if warn and self._waiting and not self._recognized and not self._warned:
            self._warned = True
            logger.warning(UNKNOWN)
        self._installed.close()
        self._recording, self._current, self._waiting, self._recognized = None, None, [], False

    def _find_hooked(self) -> None:
        """Find the layers with hooks; hooks on their submodules run when the checkpoint does."""
        found = [
            (name, part)
            for name, layer in self.layers
            for part, module in layer.named_modules(prefix=name)
            if is_hooked(module)
        ]
        self._hooked = {name for name, _ in found}
        inside = [part for name, part in found if part != name]
        if inside and not self._told:
            self._told = True
            logger.warning(HOOKED, inside[0])

    def _install(self) -> None:
        self._installed.enter_context(watched_calls([self._caller], self._recognize, self._forget))
        for number, (name, layer) in enumerate(self.layers):
            self._installed.enter_context(self._exchanged(number, name, layer))

    @contextmanager
    def _exchanged(self, number: int, name: str, layer: nn.Module) -> Iterator[None]:
        """Within the block, the layer's checkpoint uses the current forward's stored states, if any."""
        ordinary = getattr(layer, FUNCTION)

        def checkpoint(function: Any, *args: Any, **kwargs: Any) -> Any:
            known = self._current
            if known is None:
                return ordinary(function, *args, **kwargs)
            return known.run(number, name, layer, partial(function, **kwargs), args)

        setattr(layer, FUNCTION, checkpoint)
        try:
            yield
        finally:
            if getattr(layer, FUNCTION) is checkpoint:
                setattr(layer, FUNCTION, ordinary)

    def _recognize(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Check whether this forward belongs to one of the waiting micro-batches."""
        self._current = None
        given = {**dict(zip(("input_ids",), args, strict=False)), **kwargs}
        if len(args) > 1 or not torch.is_grad_enabled() or not module.training:
            return
        others = {key for key, value in given.items() if isinstance(value, Tensor)} - {*self._keys, *NOT_FOR_LAYERS}
        for index, (batch, states) in enumerate(self._waiting):
            if not others and all(_same(given.get(key), value) for key, value in batch.items()):
                if self._count_writes() != self._weights:
                    return  # the optimizer has stepped since
                del self._waiting[index]
                used = batch.get("attention_mask")
                self._current = KnownForward(states, used, self._precision, self._parts, self._checked, self._hooked)
                self._recognized = True
                return

    def _forget(self, module: nn.Module, output: Any) -> None:
        self._current = None

    def _count_writes(self) -> int:
        return sum(parameter._version for parameter in self._trained)


def _same(given: Any, expected: Tensor) -> bool:
    """Return whether a forward's argument equals a micro-batch's tensor; identity skips the comparison."""
    if given is expected:
        return True
    if not isinstance(given, Tensor) or given.shape != expected.shape or given.dtype != expected.dtype:
        return False
    return torch.equal(given, expected.to(given.device))
