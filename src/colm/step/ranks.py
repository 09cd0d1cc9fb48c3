"""Communication between ranks: the only user of torch.distributed.

With one process, every function returns its input. All ranks must call each function the same number
of times, in the same order.
"""

from __future__ import annotations

import gc

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def leave_ranks() -> None:
    """Destroy the process group, once the program needs no more communication.

    gloo's threads return tensors to Python shortly after their collective is done. A thread that does so while the
    interpreter exits aborts the process. Destroying the group joins the threads, provided nothing else references the
    group: call this after the model and the trainer have gone out of scope.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # the trainer, its model and DistributedDataParallel reference one another, and the group
        dist.destroy_process_group()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the element-wise sum over ranks; the ranks' tensors must have the same shape."""
    if rank_and_world()[1] == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def gather_rows(rows: Tensor) -> list[Tensor]:
    """Return every rank's rows, a list of (n_r, ...) in rank order; n_r may differ and may be 0.

    Trailing dimensions and dtype must match.
    """
    world = rank_and_world()[1]
    if world == 1:
        return [rows]
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world)]
    dist.all_gather(counts, count)
    sizes = [int(c) for c in torch.cat(counts).tolist()]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded)
    return [part[:size] for part, size in zip(gathered, sizes, strict=True)]
