"""Communication between ranks: the only user of torch.distributed.

With one process, every function that communicates returns its input. All ranks must call each function the same number
of times, in the same order.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from colm.errors import ConfigError
from colm.hints import Count
from colm.typed import read_value

LONG = timedelta(days=30)
"""How long processes wait for work of the first one, which may take hours."""


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def launched_rank_and_world() -> tuple[int, int]:
    """Return `rank_and_world`, or what a launcher such as torchrun set in the environment before the group is made."""
    if dist.is_available() and dist.is_initialized():
        return rank_and_world()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def read_rank(rank: int | str | None, world_size: int | None) -> tuple[int | Literal["all"], int]:
    """Return the rank, or "all", and the number of ranks; those that a launcher set where they are not given.

    Raises:
        ConfigError: a number is out of range.
    """
    found_rank, found_world = launched_rank_and_world()
    world = read_value("world_size", Count, found_world if world_size is None else world_size)
    if rank == "all":
        return "all", world
    number = (found_rank if world == found_world else None) if rank is None else rank
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < world:
        raise ConfigError(f"rank={rank!r} must be a whole number from 0 to {world - 1} (world_size={world}), or 'all'.")
    return number, world


@contextmanager
def first_on_machine(what: str) -> Iterator[None]:
    """Run the block in each machine's first process, and only then in its others; at once without a launcher.

    For work that the others find done, such as a cache. The processes need no process group, and wait as long as it
    takes. If the block raises, the others run theirs.

    Args:
        what: a name for the block.
    """
    if not all(os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")):
        yield
        return
    store, done = _launch_store(), f"colm/{what}/{socket.gethostname()}"
    first = os.environ["LOCAL_RANK"] == "0"
    if not first:
        store.wait([done], LONG)
    try:
        yield
    finally:
        if first:
            store.set(done, "done")


@cache
def _launch_store() -> Any:
    """Return the store in which the processes of a launch meet, which stays open for those that wait."""
    from torch.distributed.rendezvous import rendezvous

    return next(rendezvous("env://"))[0]


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


def most_over_ranks(count: int, device: torch.device) -> int:
    """Return the largest of the ranks' counts."""
    return int(torch.cat(gather_rows(torch.tensor([count], device=device))).max())
