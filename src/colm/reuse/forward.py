"""Train the kept rows from the selection pass: keep its layers' inputs, and let the checkpoints begin with them.

    begin      the pool comes: what is left of the last step is dropped
    recording  the selection pass runs: each layer's input is kept, and the last one's output
    keep       the picks are known: the kept rows' states are put together as training's micro-batches, the rest goes
    (training) a forward of one of these micro-batches is recognized: each layer's checkpoint returns the next layer's
               kept input, and runs the layer again in the backward, from its own
    end        the optimizer has stepped: the layers have their own checkpoint function back

A forward of anything else, an evaluation or a step without a selection pass, uses the ordinary checkpoint.
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
from colm.types import Batch

logger = logging.getLogger(__name__)

FUNCTION = "_gradient_checkpointing_func"
"""The attribute by which transformers' layers call their checkpoint."""

NOT_FOR_LAYERS = ("labels", "num_items_in_batch")
"""Arguments of a forward that its hidden states do not depend on."""

UNKNOWN = (
    "No training forward of the step had the inputs of a micro-batch that `take` returned, with the weights of the "
    "selection pass, so reuse_forward=True saved nothing. Give the model all of a micro-batch's tensors, and step "
    "once for each selection. Said once."
)

HOOKED = (
    "%s has a hook. With reuse_forward=True the hooks inside of layers run in the selection pass and in the backward, "
    "not in the training forward: what they change is trained, but a loss that is made of what they see has no "
    "gradient. Said once."
)


class ForwardReuse:
    """What is known of one step's forward, from its selection pass to the optimizer's step.

    Args:
        model: as it is trained, with gradient checkpointing by the first step.
        offload: hold states in host memory.

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
        self._weights = 0  # how often they were written to
        self._waiting: list[tuple[Batch, list[Tensor]]] = []
        self._current: KnownForward | None = None
        self._installed = ExitStack()
        self._recognised = self._warned = False
        self._checked: dict[str, tuple[Tensor, ...]] = {}
        self._hooks: list[tuple[int, ...]] = []
        self._hooked: set[str] = set()
        self._told = False

    def begin(self, pool: Pool) -> None:
        """Drop the last step, and check what may have changed since.

        Raises:
            ConfigError: gradient checkpointing is off, or the pool is padded on the left.
        """
        self.end(warn=False)
        check_checkpointing(self.layers)
        if pool.side == "left":
            raise ConfigError(
                "The batches are padded on the left, where a token's position depends on its row's neighbors, so "
                "reuse_forward=True cannot train from the selection pass; pad on the right "
                '(tokenizer.padding_side = "right"), or set reuse_forward=False.'
            )
        hooks = [(id(module), *module._forward_hooks, *module._forward_pre_hooks) for module in self._caller.modules()]
        if hooks != self._hooks:  # what they do is looked at anew
            self._checked.clear()
            self._hooks = hooks
            self._find_hooked()
        self._keys = [key for key, value in pool.batches[0].items() if isinstance(value, Tensor) and key != "labels"]
        self._weights = self._count_writes()
        self._recording = Recording(self.layers, offload=self._offload)

    def recording(self, groups: list[list[int]]) -> Any:
        """Return a context that records a forward for each group of row positions."""
        assert self._recording is not None
        return self._recording.watch(groups)

    def keep(
        self, pool: Pool, runs: Sequence[list[int]], batches: Sequence[Batch], *, held: int, max_tokens: int
    ) -> None:
        """Put the kept rows' states together for training, and drop all others.

        Rows that the pass did not run (of small sources, or from another rank) have their forward now instead of in
        training. Does nothing where there was no pass.

        Args:
            pool: this rank's rows, then those that came from other ranks.
            runs: row positions of each micro-batch.
            batches: the micro-batches, padded on the right.
            held: rows of the pool that are this rank's own.
            max_tokens: padded tokens in one forward of rows that the pass did not run.
        """
        recording, self._recording = self._recording, None
        if recording is None or not recording.where:
            return
        recording.where = {position: place for position, place in recording.where.items() if position < held}
        missing = [position for run in runs for position in run if position not in recording.where]
        groups = list(pool.group(missing, max_tokens))
        with recording.watch(groups):
            for group in groups:
                batch = pool.collate(group, side="right")
                with undisturbed(self._model):
                    read_hidden(self._model, {key: batch[key] for key in (*self._keys, "labels")})
        self._precision, self._parts = recording.precision, recording.parts
        widths = [batch["input_ids"].shape[1] for batch in batches]
        gathered = recording.gather(runs, widths)
        self._waiting = [
            ({key: batch[key] for key in self._keys}, states) for batch, states in zip(batches, gathered, strict=True)
        ]
        self._install()

    def end(self, *, warn: bool = True) -> None:
        """Drop all that is known, and give the layers their own checkpoint function back."""
        if warn and self._waiting and not self._recognised and not self._warned:
            self._warned = True
            logger.warning(UNKNOWN)
        self._installed.close()
        self._recording, self._current, self._waiting, self._recognised = None, None, [], False

    def _find_hooked(self) -> None:
        """Find the layers with hooks; those on their parts run when the checkpoint does."""
        found = [
            (name, part)
            for name, layer in self.layers
            for part, module in layer.named_modules(prefix=name)
            if module._forward_hooks or module._forward_pre_hooks
        ]
        self._hooked = {name for name, _ in found}
        inside = [part for name, part in found if part != name]
        if inside and not self._told:
            self._told = True
            logger.warning(HOOKED, inside[0])

    def _install(self) -> None:
        self._installed.enter_context(watched_calls([self._caller], self._recognise, self._forget))
        for number, (name, layer) in enumerate(self.layers):
            self._installed.enter_context(self._exchanged(number, name, layer))

    @contextmanager
    def _exchanged(self, number: int, name: str, layer: nn.Module) -> Iterator[None]:
        """Within the block, the layer's checkpoint begins with what is known of the forward at hand."""
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

    def _recognise(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look whether this forward is of one of the waiting micro-batches."""
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
                self._recognised = True
                return

    def _forget(self, module: nn.Module, output: Any) -> None:
        self._current = None

    def _count_writes(self) -> int:
        return sum(parameter._version for parameter in self._caller.parameters() if parameter.requires_grad)


def _same(given: Any, expected: Tensor) -> bool:
    """Return whether a forward's argument has the values of a micro-batch's tensor; without looking, if it is that."""
    if given is expected:
        return True
    if not isinstance(given, Tensor) or given.shape != expected.shape or given.dtype != expected.dtype:
        return False
    return torch.equal(given, expected.to(given.device))
