"""The tables of `colm plan`, its notes, and both as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from colm.lab.plan.memory import show_memory
from colm.lab.plan.outlook import RESERVE, Outlook, Request, Way
from colm.lab.plan.propose import Proposals, usable
from colm.lab.run.settings import RunSettings

NAMES = {"pool": "pool", "coreset_rows": "kept rows", "coreset_step": "coreset step"}


def list_notes(settings: RunSettings, request: Request, outlook: Outlook) -> list[str]:
    """Return what a reader of the tables should know, a sentence or two each."""
    rows = request.rows
    share = "every token" if rows.labelled == 1 else f"{rows.labelled:.0%} of the tokens"
    notes = [
        f"The worst case: all rows have {rows.tokens:,} tokens, {share} of them with a label; every row of the pool "
        "goes through the selection pass. Shorter rows take less.",
        f"Fits means at most {1 - RESERVE:.0%} of the memory: the rest is for the CUDA context, fragmentation and the "
        "plan's error.",
        "Several GPUs (DistributedDataParallel): the same on each, plus the size of the gradients once more for its "
        "buckets. The pool is the sum over GPUs.",
        "Time counts the operations of matrix products and attention, relative to training the whole pool; it excludes "
        "picking and waiting for data.",
    ]
    if settings.selection.features == "none":
        notes.append(
            "features='none': there is no selection pass, so a coreset step costs the same as training its rows."
        )
    if settings.selection.padding_free:
        notes.append(
            "padding_free=True: the plan is for PyTorch's own attention, which computes every pair of tokens of the "
            "joined rows; FlashAttention takes less time and memory. Rows of maximum length have no padding to save."
        )
    if settings.selection.reuse_forward:
        pool = request.micro_batch * request.micro_batches
        kept = outlook.kept(request.micro_batch, request.micro_batches)
        row = rows.tokens * outlook.shapes.layer_inputs
        where = "host's" if settings.selection.reuse_offload else "GPU's"
        notes.append(
            f"The table excludes reuse_forward: it takes {show_memory(pool * row)} GiB more of the {where} memory "
            f"during selection, for the pool's layer inputs, and {show_memory(kept * row)} GiB during training, and "
            "saves a forward of the kept rows."
        )
    return notes


def ways_table(request: Request, ways: Mapping[str, Way], memory: int) -> Table:
    """Return the table of the memory and the relative time of each way to train."""
    pool = request.micro_batch * request.micro_batches
    table = Table(
        title=f"GiB of a GPU's {show_memory(memory)}; a pool of {request.micro_batches} x {request.micro_batch} = "
        f"{pool} rows",
        padding=0,
    )
    table.add_column("trains", no_wrap=True)
    for name in ("rows", "weights", "optim", "grads", "activ", "select", "peak", "fits", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, way in ways.items():
        parts = (way.parameters, way.optimizer, way.gradients, way.activations, way.selection, way.peak)
        table.add_row(
            NAMES[name],
            f"{way.rows:,}",
            *map(show_memory, parts),
            "yes" if way.peak <= usable(memory) else "no",
            f"{way.flops / ways['pool'].flops:.2f}",
        )
    return table


def proposals_table(request: Request, proposals: Mapping[str, Proposals]) -> Table:
    """Return the table of the sizes that fit."""
    table = Table(title="What fits: training.per_device_train_batch_size, gradient_accumulation_steps")
    table.add_column("trains", no_wrap=True)
    for name in ("aim", "batch size", "accumulation", "pool", "peak"):
        table.add_column(name, justify="left" if name == "aim" else "right")
    pool = request.micro_batch * request.micro_batches
    aims = {"same_pool": f"this pool of {pool}", "largest_pool": "largest pool"}
    for name, of_way in proposals.items():
        for aim, text in aims.items():
            found = getattr(of_way, aim)
            cells = ["-"] * 4
            if found is not None:
                cells = [*(f"{value:,}" for value in found[:3]), show_memory(found.peak)]
            table.add_row(NAMES[name], text, *cells)
    return table


def list_values(
    settings: RunSettings,
    request: Request,
    outlook: Outlook,
    memory: int,
    ways: Mapping[str, Way],
    proposals: Mapping[str, Proposals],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return all of it for JSON, sizes in bytes."""
    return {
        "model": settings.model,
        "memory_bytes": memory,
        "usable_bytes": usable(memory),
        "sequence_length": request.rows.tokens,
        "labelled": request.rows.labelled,
        "pool": request.micro_batch * request.micro_batches,
        "per_device_train_batch_size": request.micro_batch,
        "gradient_accumulation_steps": request.micro_batches,
        "trained_parameters": sum(weight.numel() for weight in outlook.shapes.trained),
        "ways": {
            name: {
                **{
                    f"{part}_bytes": getattr(way, part)
                    for part in ("parameters", "optimizer", "gradients", "activations", "selection", "peak")
                },
                "rows": way.rows,
                "micro_batch": way.micro_batch,
                "flops": way.flops,
                "relative_time": way.flops / ways["pool"].flops,
                "fits": way.peak <= usable(memory),
            }
            for name, way in ways.items()
        },
        "proposals": {
            name: {aim: found._asdict() if found is not None else None for aim, found in of_way._asdict().items()}
            for name, of_way in proposals.items()
        },
        "notes": list(notes),
    }
