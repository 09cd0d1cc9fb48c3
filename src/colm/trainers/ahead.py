"""Collate the next pool, and count its tokens, while a step runs: in the data loader's worker processes."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.data_loader import DataLoaderDispatcher

from colm.trainers.columns import CollatorWithCodes

logger = logging.getLogger(__name__)

HINT = (
    "The data loader has no workers, so the GPU waits while a pool is read and collated. Set dataloader_num_workers=1 "
    "(and, in accelerator_config, non_blocking=True) to do this while a step runs."
)


def prepare_ahead(loader: Any, args: Any, collator: Any) -> None:
    """Set up a training loader so that a whole pool lies ready when a step begins; says once in the log what is used.

    Without workers nothing is prepared ahead. A number of batches that the user set stays.

    Args:
        loader: as accelerate prepared it, before its first pass.
        args: the Trainer's arguments.
        collator: the Trainer's collator; if it is ours, it counts tokens on the host, unless batches are concatenated.
    """
    dispatches = isinstance(loader, DataLoaderDispatcher)
    if isinstance(collator, CollatorWithCodes):
        collator.describes = not dispatches
    workers = args.dataloader_num_workers
    if not workers:
        if torch.device(args.device).type == "cuda":
            logger.info(HINT)
        return
    inner = getattr(loader, "base_dataloader", loader)
    inner.worker_init_fn = partial(_outlive_sigterm, inner.worker_init_fn)
    if args.dataloader_prefetch_factor is None:
        inner.prefetch_factor = batches_ahead(args, ranks=args.world_size if dispatches else 1)
    logger.info(
        "The data loader collates the next pool while a step runs: %d %s, up to %d micro-batches ahead each.",
        workers,
        "worker" if workers == 1 else "workers",
        inner.prefetch_factor,
    )


def batches_ahead(args: Any, *, ranks: int = 1) -> int:
    """Return how many batches each worker must prepare for a whole pool to lie ready; at least torch's own 2.

    Args:
        args: the Trainer's arguments, with workers.
        ranks: number of processes for which this loader reads.
    """
    pool: int = args.gradient_accumulation_steps * ranks
    workers: int = args.dataloader_num_workers
    return max(2, math.ceil(pool / workers))


def _outlive_sigterm(then: Callable[[int], None] | None, worker: int) -> None:
    """Let a worker obey its own process's SIGTERM only, then do what the loader's own `worker_init_fn` does.

    Clusters send it to all processes of a job, and the training still needs batches to end its step and save.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_if_told_by_parent, daemon=True).start()
    if then is not None:
        then(worker)


def _exit_if_told_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
