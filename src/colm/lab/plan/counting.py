"""Run code without values: tensors with shapes but no storage, and a count of the memory they would need.

Floating-point tensors are fake. Integers and booleans are real unless they are large. The rows of a pool, their padding
and their labeled tokens are known before training; the model's outputs are not. So the training and selection code runs
unchanged, and its allocations are counted, with the kernels that a GPU would run if asked.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
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
"""Maximum elements of a real tensor; larger tensors, such as the attention mask of long rows, are also fake."""

LOGITS = "logits"
"""The part of tensors with an entry for each token of the vocabulary."""

_FACTORIES = tuple(f"aten.{name}" for name in ("empty", "full", "new_", "ones", "rand", "zeros"))


class DryRun(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, results computed from fake tensors are fake, and allocations are counted.

    A number read from a fake tensor is always 1. So loops and branches that depend on computed values may take any
    path: use only results that do not depend on them.

    The results of PyTorch's operations are counted, each storage for as long as it is referenced. The workspace inside
    a kernel is not counted.

    Args:
        fake: the mode of the model's fake tensors; it must allow inputs that are not fake.
        vocabulary: the last dimension of logits.

    Attributes:
        live: bytes of live tensors created inside the block.
        peak: the maximum of `live` since `start`, in bytes.
        parts: part -> bytes at that peak, of the tensors that `label` assigned to a part, and of logits.
        flops: operations of matrix products and attention since `start`, counting a multiply-add as two.
    """

    def __init__(self, fake: FakeTensorMode, vocabulary: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = fake
        self.live = self.peak = self.flops = 0
        self.parts: Counter[str] = Counter()
        self._vocabulary = vocabulary
        self._live_parts: Counter[str] = Counter()
        self._known: weakref.WeakKeyDictionary[Any, _Counted | None] = weakref.WeakKeyDictionary()

    def start(self) -> int:
        """Reset the peak and the operation count, and return the bytes that are live now."""
        self.peak, self.parts, self.flops = self.live, self._live_parts.copy(), 0
        return self.live

    def label(self, tensor: Tensor, part: str) -> None:
        """Count a live tensor that was created inside the block as a part from now on."""
        counted = self._known.get(tensor.untyped_storage())
        if counted is not None:
            self._live_parts[counted.part] -= counted.size
            counted.part = part
            self._live_parts[part] += counted.size

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is _ASKS_FOR_DEVICE:  # two thirds of all calls; allocates nothing
            return func(*args, **kwargs)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        for tensor in given:  # a view of an existing tensor is not a new tensor
            self._known.setdefault(tensor.untyped_storage(), None)
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
        """Run a function that has at least one fake argument."""
        first = args[0] if args else None
        if func is _READS_A_NUMBER:
            return 1.0 if args[0].dtype.is_floating_point else 1
        if func is _aten.allclose.default:  # a check that a layer repeats a batch, which is so for nearly all models
            return True
        if func is _aten.nonzero.default:  # as if all elements were true
            return self._new((args[0].numel(), args[0].dim()), torch.int64)
        if func is _aten.bincount.default:
            return self._new((args[2] if len(args) > 2 else kwargs.get("minlength", 1),), torch.int64)
        if isinstance(first, Tensor) and not isinstance(first, FakeTensor) and func._schema.is_mutable:
            return first  # a real tensor cannot hold unknown values; leave it unchanged
        if func in _INDEXED:
            args = (first, [place for index in args[1] for place in self._places(index)], *args[2:])
        return func(*args, **kwargs)

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        with self.fake:
            return torch.empty(shape, dtype=dtype)

    def _places(self, index: Tensor | None) -> list[Tensor | None]:
        """Convert a mask to the indices of its true elements, as the kernel does, so that their number is known."""
        if index is None or index.dtype is not torch.bool or isinstance(index, FakeTensor):
            return [index]
        places = index.nonzero()
        self._count(places)
        return list(places.unbind(1))

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        logits = tensor.dim() > 1 and tensor.shape[-1] == self._vocabulary and tensor.is_floating_point()
        counted = self._known[storage] = _Counted(storage.nbytes(), LOGITS if logits else "")
        self.live += counted.size
        self._live_parts[counted.part] += counted.size
        if self.live > self.peak:
            self.peak, self.parts = self.live, self._live_parts.copy()
        weakref.finalize(storage, self._drop, counted)

    def _drop(self, counted: _Counted) -> None:
        self.live -= counted.size
        self._live_parts[counted.part] -= counted.size


@dataclass
class _Counted:
    """A storage that was created inside a dry run."""

    size: int  # bytes
    part: str  # "" for no part in particular


def _makes_floats(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a function without tensors among its arguments creates floating-point numbers."""
    if not str(func).startswith(_FACTORIES):
        return False
    dtype = kwargs.get("dtype")
    if dtype is None and func is _aten.full.default:
        return isinstance(args[1], float)
    return bool((dtype or torch.get_default_dtype()).is_floating_point)


def _numbers(given: Sequence[Tensor], args: tuple[Any, ...]) -> int:
    """Return the number of elements in a function's result: that of its broadcast arguments."""
    shapes = [tensor.shape for tensor in given]
    if not given and args and isinstance(args[0], (list, tuple)):  # a function that creates a tensor from a size
        shapes = [torch.Size(args[0])]
    depth = max(map(len, shapes), default=0)
    aligned = [(1,) * (depth - len(shape)) + tuple(shape) for shape in shapes]
    return math.prod(map(max, zip(*aligned, strict=True)))


def _count_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:
    return int(_flops_of.sdpa_flop_count(query.shape, _ungrouped(key, query), _ungrouped(value, query)))


def _count_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> int:
    shapes = (query.shape, _ungrouped(key, query), _ungrouped(value, query))
    return int(_flops_of.sdpa_backward_flop_count(gradient.shape, *shapes))


def _ungrouped(tensor: Tensor, query: Tensor) -> torch.Size:
    """Return the shape of keys or values with the queries' heads; PyTorch up to 2.11 miscounts grouped heads."""
    return torch.Size((tensor.shape[0], query.shape[1], *tensor.shape[2:]))


def _count_flash(query: Tensor, key: Tensor, value: Tensor, rows: Tensor | None, *args: Any, **kwargs: Any) -> int:
    shapes = _row_shapes(query, (query, key, value), rows)
    return sum(int(_flops_of.sdpa_flop_count(*of_row)) for of_row in shapes)


def _count_flash_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    numbers: Tensor,
    rows: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> int:
    shapes = _row_shapes(query, (gradient, query, key, value), rows)
    return sum(int(_flops_of.sdpa_backward_flop_count(*of_row)) for of_row in shapes)


def _row_shapes(query: Tensor, tensors: Sequence[Tensor], rows: Tensor | None) -> list[list[tuple[int, ...]]]:
    """Return shapes (n, heads, T, d), all with the queries' heads, for padded rows (n, T, heads, d), or of each joined
    row (tokens, heads, d) between two of the bounds `rows`; PyTorch mistakes the heads of padded rows for tokens.
    """
    heads = query.shape[-2]
    if rows is None:
        return [[(len(tensor), heads, tensor.shape[1], tensor.shape[3]) for tensor in tensors]]
    return [[(1, heads, tokens, tensor.shape[-1]) for tensor in tensors] for tokens in rows.diff().tolist()]


_KERNELS = [f"_scaled_dot_product_{name}" for name in ("flash_attention", "efficient_attention", "cudnn_attention")]
_KERNELS.append("_scaled_dot_product_flash_attention_for_cpu")  # missing from PyTorch's own table

FLOPS: dict[Any, Callable[..., Any]] = {
    **_flops_of.flop_registry,
    **{getattr(_aten, name): _count_attention for name in _KERNELS},
    **{getattr(_aten, f"{name}_backward"): _count_attention_backward for name in _KERNELS},
    _aten._flash_attention_forward: _count_flash,
    _aten._flash_attention_backward: _count_flash_backward,
}
"""The number of operations of a call, given its arguments and its result."""


@contextmanager
def gpu_kernels() -> Iterator[None]:
    """Inside the block, fake CPU tensors go through the operations that a GPU would run.

    Dropout keeps a boolean mask instead of a float mask. Attention is memory-efficient: it keeps its output, a float32
    number per query, and the given mask in the queries' dtype.

    Real tensors must not be used inside the block, since it replaces functions of torch.nn.functional. (PyTorch's
    function mode is not active when a checkpointed layer is recomputed.)
    """
    original = {name: getattr(functional, name) for name in _REPLACED}
    for name, replacement in _REPLACED.items():
        setattr(functional, name, replacement)
    try:
        yield
    finally:
        for name, function in original.items():
            setattr(functional, name, function)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or p == 0:
        return input
    dropped: Tensor = torch.native_dropout(input, p, True)[0]
    return dropped


def _gpu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    out: Tensor
    keeps = any(tensor.requires_grad for tensor in (query, key, value)) and torch.is_grad_enabled()
    if attn_mask is None and query.dtype != torch.float32:
        out = _aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
        return out
    if enable_gqa and key.shape[1] != query.shape[1]:  # only the flash kernel supports grouped heads
        copies = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(copies, 1), value.repeat_interleave(copies, 1)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = query.new_zeros(attn_mask.shape).masked_fill_(attn_mask.logical_not(), float("-inf"))
    if attn_mask is not None:
        attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    out = _aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, keeps, dropout_p, is_causal, scale=scale
    )[0]
    return out


_REPLACED = {"dropout": _dropout, "scaled_dot_product_attention": _gpu_attention}
