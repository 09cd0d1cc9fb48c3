"""What travels between ranks: the only user of torch.distributed.

Every function returns its input where there is one process. All ranks call each function the same
number of times, in the same order.
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
    """Take the process group down, once a program has nothing more to send.

    gloo's threads give tensors back to Python a little after their collective is done. One that does so while the
    interpreter ends aborts the process. Taking the group down joins the threads, if nothing holds the group any more:
    call this where the model and the trainer are out of reach.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # the trainer, its model and DistributedDataParallel hold one another, and the group
        dist.destroy_process_group()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Return the element-wise sum over ranks of equally shaped tensors."""
    if rank_and_world()[1] == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def gather_rows(rows: Tensor) -> list[Tensor]:
    """Return every rank's rows, a list of (n_r, ...) in rank order; n_r may differ and be 0.

    Trailing dimensions and dtype must agree.
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
