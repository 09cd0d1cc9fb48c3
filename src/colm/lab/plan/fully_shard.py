"""The allocations of PyTorch's fully_shard (FSDP2) in a dry run, without its communication.

`fully_shard` is taken to be applied to each layer and to the model, whose own group has the other weights: embedding,
last norm and head. (accelerate from 1.15 also shards an untied embedding on its own, and frees it between its uses; the
plan keeps it.) At the same moments as torch's code, a group of parameters allocates and frees

- `GATHERED`: the output of its all-gather, and the whole weights that are copied out of it. A forward keeps the output
  until the next group's weights are there; a backward gathers the next group's already. Layers free their weights after
  each forward and backward; the model's own stay from its forward to the end of the backward.
- `UNREDUCED`: its whole gradients, until they are copied into the input of its reduce-scatter, which stays until the
  next group's is made. Where the reduction is deferred, whole gradients stay from one micro-batch to the next.

Source: torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py, FSDPParamGroup (pre_forward to post_backward,
_backward_prefetch), and _fsdp_collectives.py, foreach_all_gather and foreach_reduce, of torch 2.13. Since the same
memory is referenced in the same order on a CPU, two processes there show it, see benchmarks/sharded_memory.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from colm.lab.plan.counting import DryRun
from colm.lab.plan.shapes import Shapes
from colm.lab.plan.sharding import Sharding, padded_bytes, shard_shape

GATHERED, UNREDUCED, REDUCED = "gathered", "unreduced", "reduced"


class Unit(NamedTuple):
    """Parameters that are gathered and reduced together, when a module runs."""

    module: nn.Module
    weights: list[nn.Parameter]


class Sharded(NamedTuple):
    """What fully_shard knows of a model."""

    units: list[Unit]
    loaded: dict[Tensor, Tensor]  # each parameter as loaded, see `Shapes`
    mixed: bool  # forwards run in another dtype

    @classmethod
    def of(cls, shapes: Shapes) -> Sharded:
        """Return it for a model with all its layers."""
        loaded = dict(zip(shapes.model.parameters(), shapes.loaded, strict=True))
        return cls(find_units(shapes.model), loaded, shapes.cast is not None)


class _Group:
    """A unit, with what it has allocated."""

    def __init__(self, unit: Unit, loaded: Mapping[Tensor, Tensor], *, reshards: bool) -> None:
        self.module, self.weights, self.reshards = unit.module, unit.weights, reshards
        self.trained = [weight for weight in unit.weights if weight.requires_grad]
        self.loaded = [loaded[weight] for weight in self.trained]
        self.output: Tensor | None = None  # of its all-gather
        self.whole: Tensor | None = None
        self.reduced: Tensor | None = None
        self.uses: list[int] = []  # places in the order of the forwards
        self.backward = False  # from its first gradient until its gradients are complete


def find_units(model: nn.Module) -> list[Unit]:
    """Return the modules to shard, with their parameters: the layers, and last the model with all others.

    Layers are the modules that transformers does not split over devices; without such a list, those of the longest
    list of modules.
    """
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    layers = [module for module in model.modules() if type(module).__name__ in names and module is not model]
    if not layers:
        lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
        layers = max(lists, key=len, default=[])
    seen: set[nn.Parameter] = set()
    units = []
    for module in [*layers, model]:
        weights = [weight for weight in module.parameters() if weight not in seen]
        seen.update(weights)
        units.append(Unit(module, weights))
    return units


class FullyShard:
    """Allocates what fully_shard allocates while a model of fake tensors runs inside a `DryRun`.

    Args:
        dry: the run.
        shard: of the model; some of its layers may be gone since.
        sharding: of the engine ``fsdp2``.
        accumulated: gradients of an earlier micro-batch exist.
    """

    def __init__(self, dry: DryRun, shard: Sharded, sharding: Sharding, *, accumulated: bool) -> None:
        self._dry, self._sharding, self._mixed = dry, sharding, shard.mixed
        *layers, model = shard.units
        self._groups = [_Group(unit, shard.loaded, reshards=sharding.reshard) for unit in layers]
        self._groups.append(_Group(model, shard.loaded, reshards=False))
        self._order: list[_Group] = []  # in which they ran
        self._output: Tensor | None = None  # of the last forward's all-gather
        self._input: Tensor | None = None  # of the last reduce-scatter
        self._queued = False
        for group in self._groups:
            if accumulated and sharding.deferred:
                for weight in group.trained:
                    weight.grad = torch.zeros_like(weight)
                    dry.label(weight.grad, UNREDUCED)
            elif accumulated:
                group.reduced = self._shards(group)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Follow the forwards and backwards inside the block; then free everything, gradients included."""
        handles = []
        for group in self._groups:
            before, after = partial(self._before_forward, group), partial(self._after_forward, group)
            handles.append(group.module.register_forward_pre_hook(before, with_kwargs=True, prepend=True))
            handles.append(group.module.register_forward_hook(after))
            for weight in group.trained:
                handles.append(weight.register_post_accumulate_grad_hook(self._label_gradient))  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for group in self._groups:
                group.output = group.whole = group.reduced = None
                for weight in group.trained:
                    weight.grad = None
            self._output = self._input = None

    def _label_gradient(self, weight: Tensor) -> None:
        if weight.grad is not None:
            self._dry.label(weight.grad, UNREDUCED)

    def _new(self, weights: list[nn.Parameter], part: str, *, whole: bool = True) -> Tensor:
        """Allocate weights as they are communicated: each padded to a multiple of the GPUs."""
        size = padded_bytes(weights, self._sharding.gpus)
        made = torch.empty(size // (1 if whole else self._sharding.gpus) // 2, dtype=torch.float16)
        self._dry.label(made, part)
        return made

    def _shards(self, group: _Group) -> Tensor:
        """Allocate reduced gradients, in the dtype in which weights are kept."""
        gpus = self._sharding.gpus
        sizes = [
            math.prod(shard_shape(loaded, gpus)) * (4 if self._mixed else loaded.element_size())
            for loaded in group.loaded
        ]
        made = torch.empty(sum(sizes) // 2, dtype=torch.float16)
        self._dry.label(made, REDUCED)
        return made

    def _gather(self, group: _Group) -> None:
        if group.whole is None and group.output is None:
            group.output = self._new(group.weights, GATHERED)

    def _copy_out(self, group: _Group) -> Tensor | None:
        """Make the gathered weights whole, and return what must outlive the copy in a forward."""
        output, group.output = group.output, None
        if output is not None:
            group.whole = self._new(group.weights, GATHERED)
        return output

    def _before_forward(self, group: _Group, module: nn.Module, args: Any, kwargs: Any) -> Any:
        self._gather(group)
        if group.output is not None:
            self._output = None
            self._output = self._copy_out(group)
        if not torch.is_grad_enabled():
            return None
        leaves, spec = tree_flatten((args, kwargs))
        places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if places:
            after = partial(self._after_backward, group)
            tracked = _AfterBackward.apply(after, *(leaves[n] for n in places))  # type: ignore[no-untyped-call]
            for n, tensor in zip(places, tracked, strict=True):
                leaves[n] = tensor
        return tree_unflatten(leaves, spec)

    def _after_forward(self, group: _Group, module: nn.Module, args: Any, output: Any) -> None:
        if _in_backward():  # a checkpointed layer is computed again
            return
        if group.reshards:
            group.whole = None
        if group is self._groups[-1]:
            self._output = None
        group.uses.append(len(self._order))
        self._order.append(group)
        if torch.is_grad_enabled():
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(partial(self._before_backward, group))  # type: ignore[no-untyped-call]

    def _before_backward(self, group: _Group, gradient: Tensor) -> None:
        if group.backward:
            return
        if not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        group.backward = True
        self._gather(group)
        self._copy_out(group)
        if group.uses and (place := group.uses.pop()) > 0:
            self._gather(self._order[place - 1])

    def _after_backward(self, group: _Group) -> None:
        group.backward = False
        if group.reshards or group is self._groups[-1]:
            group.whole = None
        self._input = None
        if all(weight.grad is None for weight in group.trained):
            return
        self._input = self._new(group.trained, UNREDUCED)
        for weight in group.trained:
            weight.grad = None
        reduced = self._new(group.trained, UNREDUCED, whole=False)
        shards = self._shards(group) if self._mixed else reduced
        if group.reduced is None:
            group.reduced = shards
            self._dry.label(shards, REDUCED)

    def _finish(self) -> None:
        """Reduce what no gradient of an input has triggered: the first group, and the model's own."""
        self._queued = False
        for group in self._groups[-1:] + self._groups[:-1]:
            if group.whole is not None or any(weight.grad is not None for weight in group.trained):
                self._after_backward(group)
            group.output = None
            group.uses.clear()
        self._input = None
        self._order.clear()


class _AfterBackward(torch.autograd.Function):
    """The identity; calls a function once the gradients of all its inputs are known."""

    @staticmethod
    def forward(ctx: Any, call: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        return inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ctx.call()
        return (None, *gradients)


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)
