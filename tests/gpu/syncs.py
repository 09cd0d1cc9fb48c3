"""Where the host waits for the device: on a GPU as reported by CUDA, on a CPU by calls that would wait on a GPU."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = str(Path("src", "colm"))

READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "unique_", "bincount", "_linalg_check_errors")
"""Operations whose result, or result size, the host must know."""

TO_HOST = {Tensor.tolist, Tensor.cpu, Tensor.numpy}
"""Methods that copy to the host but run no operation if the tensor is already there."""


def place() -> str:
    """Return the innermost function of the package on the stack, as ``module.function``."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if PACKAGE in path or "site-packages/colm" in path:
            module = path.rpartition("colm/")[2].removesuffix(".py").replace("/", ".")
            return f"{module}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def has_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


class _Operations(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        indexed = name in ("index", "index_put", "index_put_", "_index_put_impl_")
        if name.startswith(READS) or (indexed and has_mask(args[1])):
            self.found[place()] += 1
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in TO_HOST:
            self.found[place()] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(device: torch.device) -> Iterator[Counter[str]]:
    """Count the places within the block at which the host waits, or would wait if its tensors were a GPU's.

    The rehearsal cannot tell a tensor that stays on the host from one that would be a GPU's, so it counts more.
    """
    found: Counter[str] = Counter()
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(_Methods(found))
            stack.enter_context(_Operations(found))
            yield found
            return
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")

        def note(message: Any, *args: Any, **kwargs: Any) -> None:
            if "synchronizing CUDA operation" in str(message):
                found[place()] += 1

        warnings.showwarning = note  # called where the host waits, so that the stack tells the place
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
