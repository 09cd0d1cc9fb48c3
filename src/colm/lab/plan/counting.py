"""Run code without values: tensors that have shapes but no memory, and a count of what they would take.

Floating-point tensors are fake, integers and truth values are real, as long as they are not large. Which rows a pool
has, how they are padded and which tokens are labelled is known before training; what a model computes is not. So the
code that trains and selects runs as it is, and what it would allocate is counted.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten: Any = torch.ops.aten
_flops_of: Any = flop_counter
_READS_A_NUMBER = _aten._local_scalar_dense.default
_ASKS_FOR_DEVICE = torch.ops.prim.device.default
_INDEXED = {
    _aten.index.Tensor,
    _aten._unsafe_index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index_put.default,
}
LARGEST = 2**24
"""Numbers that a real tensor has at most; larger ones, such as the attention mask of long rows, are fake, too."""

_FACTORIES = tuple(f"aten.{name}" for name in ("empty", "full", "new_", "ones", "rand", "zeros"))


class DryRun(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within its block, what is computed from fake tensors is fake, and what is allocated is counted.

    A number that is read from a fake tensor is 1, whatever was computed. So a loop or a choice that hangs on computed
    values takes any course: look only at what does not hang on them.

    Counted are the results of PyTorch's operations, each storage for as long as something holds it. The workspace
    that a kernel has for itself is not.

    Args:
        fake: what the model's fake tensors belong to; it must allow inputs that are not fake.

    Attributes:
        live: bytes of the tensors made within a block that are alive.
        peak: the most that `live` has been since `start`, in bytes.
        flops: operations of matrix products and attention since `start`, a multiplication with its addition two.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = fake
        self.live = self.peak = self.flops = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def start(self) -> int:
        """Count the peak and the operations anew, and return the bytes that are alive now."""
        self.peak, self.flops = self.live, 0
        return self.live

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is _ASKS_FOR_DEVICE:  # two of three calls, and nothing is allocated
            return func(*args, **kwargs)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        for tensor in given:  # a view of what was there before is no new tensor
            self._known.add(tensor.untyped_storage())
        if any(isinstance(tensor, FakeTensor) for tensor in given):
            out = self._run(func, args, kwargs)
        elif (not given and _makes_floats(func, args, kwargs)) or _numbers(given, args) > LARGEST:
            with self.fake:
                out = func(*args, **kwargs)
        else:
            out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        operations = FLOPS.get(func._overloadpacket)
        if operations is not None:
            self.flops += int(operations(*args, **kwargs, out_val=out))
        return out

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function of which at least one argument is fake."""
        first = args[0] if args else None
        if func is _READS_A_NUMBER:
            return 1.0 if args[0].dtype.is_floating_point else 1
        if func is _aten.nonzero.default:  # as if all were true
            return self._new((args[0].numel(), args[0].dim()), torch.int64)
        if func is _aten.bincount.default:
            return self._new((args[2] if len(args) > 2 else kwargs.get("minlength", 1),), torch.int64)
        if isinstance(first, Tensor) and not isinstance(first, FakeTensor) and func._schema.is_mutable:
            return first  # a real tensor can not hold what is not known; it stays as it is
        if func in _INDEXED:
            args = (first, [place for index in args[1] for place in self._places(index)], *args[2:])
        return func(*args, **kwargs)

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with self.fake:
            return torch.empty(shape, dtype=dtype)

    def _places(self, index: Tensor | None) -> list[Tensor | None]:
        """Turn a mask into the places where it is true, as the kernel does, so that their number is known."""
        if index is None or index.dtype is not torch.bool or isinstance(index, FakeTensor):
            return [index]
        places = index.nonzero()
        self._count(places)
        return list(places.unbind(1))

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size


def _makes_floats(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a function without tensors among its arguments makes floating-point numbers."""
    if not str(func).startswith(_FACTORIES):
        return False
    dtype = kwargs.get("dtype")
    if dtype is None and func is _aten.full.default:
        return isinstance(args[1], float)
    return bool((dtype or torch.get_default_dtype()).is_floating_point)


def _numbers(given: Sequence[Tensor], args: tuple[Any, ...]) -> int:
    """Return how many numbers the result of a function has: those of its arguments when they are broadcast."""
    shapes = [tensor.shape for tensor in given]
    if not given and args and isinstance(args[0], (list, tuple)):  # what makes a tensor of a size
        shapes = [torch.Size(args[0])]
    depth = max(map(len, shapes), default=0)
    aligned = [(1,) * (depth - len(shape)) + tuple(shape) for shape in shapes]
    return math.prod(map(max, zip(*aligned, strict=True)))


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(_flops_of.sdpa_flop_count(query.shape, _ungrouped(key, query), _ungrouped(value, query)))


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    shapes = (query.shape, _ungrouped(key, query), _ungrouped(value, query))
    return int(_flops_of.sdpa_backward_flop_count(gradient.shape, *shapes))


def _ungrouped(tensor: Tensor, query: Tensor) -> torch.Size:
    """Return the shape of keys or values with as many heads as the queries: up to 2.11 PyTorch counts no others."""
    return torch.Size((tensor.shape[0], query.shape[1], *tensor.shape[2:]))


_KERNELS = [f"_scaled_dot_product_{name}" for name in ("flash_attention", "efficient_attention", "cudnn_attention")]
_KERNELS.append("_scaled_dot_product_flash_attention_for_cpu")  # which PyTorch's own table lacks

FLOPS: dict[Any, Callable[..., Any]] = {
    **_flops_of.flop_registry,
    **{getattr(_aten, name): _attention for name in _KERNELS},
    **{getattr(_aten, f"{name}_backward"): _attention_backward for name in _KERNELS},
}
"""How many operations a call takes, given its arguments and its result."""
