"""The tables of `colm plan`, and all that it says as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from colm.lab.cli.plan_notes import count_sources
from colm.lab.plan.memory import show_memory
from colm.lab.plan.outlook import Outlook, Request, Way
from colm.lab.plan.propose import Proposals, usable
from colm.lab.run.settings import RunSettings

NAMES = {"pool": "pool", "coreset_rows": "kept rows", "coreset_step": "coreset step"}


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


PARTS = {
    "rows": "rows trained",
    "parameters": "weights",
    "optimizer": "optimizer states",
    "gradients": "gradients, reduced",
    "unreduced": "gradients, whole; buffers",
    "gathered": "gathered weights",
    "activations": "activations",
    "logits": "of these, logits",
    "selection": "selection",
    "passing": "of it, gathered weights",
    "peak": "peak",
}


def parts_table(request: Request, ways: Mapping[str, Way], memory: int) -> Table:
    """Return the table of the memory of one of several GPUs, by part, and the relative time of each way to train."""
    assert request.sharding is not None
    pool, gpus = request.micro_batch * request.micro_batches, request.sharding.gpus
    table = Table(
        title=f"GiB of each of {gpus} GPUs with {show_memory(memory)}, {request.sharding.engine}; a pool of "
        f"{gpus} x {request.micro_batches} x {request.micro_batch} = {gpus * pool} rows",
        padding=0,
    )
    table.add_column("", no_wrap=True)
    for name in ways:
        table.add_column(NAMES[name], justify="right", no_wrap=True)
    for part, text in PARTS.items():
        values = [getattr(way, part) for way in ways.values()]
        table.add_row(text, *(f"{value:,}" if part == "rows" else show_memory(value) for value in values))
    table.add_row("fits", *("yes" if way.peak <= usable(memory) else "no" for way in ways.values()))
    table.add_row("time", *(f"{way.flops / ways['pool'].flops:.2f}" for way in ways.values()))
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
    sharding = request.sharding
    traffic = outlook.traffic(request.micro_batch, request.micro_batches, count_sources(settings))
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
                **{f"{part}_bytes": getattr(way, part) for part in PARTS if part != "rows"},
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
        "sharding": sharding._asdict() if sharding is not None else None,
        "traffic_bytes": traffic._asdict() if traffic is not None else None,
        "notes": list(notes),
    }
