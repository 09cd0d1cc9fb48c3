"""`colm plan`: predict a run's GPU memory and time, without a GPU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from rich.table import Table

from colm.errors import ConfigError
from colm.lab.cli.console import make_console
from colm.lab.plan.memory import parse_memory, show_memory
from colm.lab.plan.outlook import RESERVE, Outlook, Request, Way
from colm.lab.plan.propose import Proposals, propose, usable
from colm.lab.plan.shapes import ModelSpec
from colm.lab.plan.steps import Rows
from colm.lab.run.named import adapter_settings, check_adapter, read_adapter
from colm.lab.run.settings import RunSettings, load_settings

NAMES = {"pool": "pool", "coreset_rows": "kept rows", "coreset_step": "coreset step"}
LONGEST = 2**20
"""Maximum tokens per row to plan for: ids, masks and labels of a few rows are allocated."""

UNPLANNED = ("fsdp", "deepspeed", "torch_compile", "auto_find_batch_size", "use_liger_kernel")
"""Trainer settings that change memory in ways that the plan does not model."""


def plan_command(
    config: str,
    overrides: Sequence[str],
    *,
    gpu_memory: str,
    sequence_length: int | None = None,
    labelled: float = 1.0,
    as_json: bool = False,
) -> None:
    """Print the cost of training the pool, the coreset's rows, and the coreset step, and what fits.

    Args:
        config: the run's configuration.
        overrides: overrides of its settings.
        gpu_memory: memory of one GPU, see `parse_memory`.
        sequence_length: tokens in the longest rows; default data.max_length.
        labelled: fraction of a row's tokens that have a label, above 0 and at most 1.
        as_json: print JSON instead of tables, sizes in bytes.

    Raises:
        ConfigError: a value out of range, a model that cannot be planned, or too little memory for its weights.
    """
    memory = parse_memory(gpu_memory)
    settings = load_settings(config, overrides)
    request = make_request(settings, sequence_length, labelled)
    outlook = Outlook(request)
    outlook.require(memory)
    sizes = (request.micro_batch, request.micro_batches)
    ways = {
        "pool": outlook.pool(*sizes),
        "coreset_rows": outlook.coreset_rows(*sizes),
        "coreset_step": outlook.coreset_step(*sizes),
    }
    proposals = {
        "pool": propose(outlook, memory, coreset=False),
        "coreset_step": propose(outlook, memory, coreset=True),
    }
    notes = _notes(settings, request, outlook)
    if as_json:
        print(json.dumps(_values(settings, request, outlook, memory, ways, proposals, notes), indent=2))
        return
    console = make_console()
    console.print(_ways_table(request, ways, memory))
    console.print(_proposals_table(request, proposals))
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False)


def make_request(settings: RunSettings, sequence_length: int | None = None, labelled: float = 1.0) -> Request:
    """Return the planning request for a run.

    Raises:
        ConfigError: a length, fraction or size out of range, or settings that the plan does not model.
    """
    if sequence_length is not None and sequence_length < 2:
        raise ConfigError(
            f"--sequence-length={sequence_length} must be at least 2 tokens; leave it out for the data's."
        )
    tokens = sequence_length or settings.data.max_length
    if tokens > LONGEST:
        source = "data.max_length" if sequence_length is None else "--sequence-length"
        raise ConfigError(
            f"{source}={tokens:,} exceeds the limit of {LONGEST:,} tokens; plan shorter rows: "
            f"--sequence-length {LONGEST}"
        )
    if not 0 < labelled <= 1:
        raise ConfigError(f"--labelled={labelled} must be above 0 and at most 1, the fraction of tokens with a label.")
    training = settings.arguments
    for name in UNPLANNED:
        if training.get(name):
            raise ConfigError(
                f"training.{name}={training[name]!r} changes memory in ways that colm plan does not model; plan "
                f"without it: colm plan ... training.{name}=null"
            )
    micro_batch, micro_batches = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
    settings.selection.check_pool(micro_batch * micro_batches, micro_batches)
    named = check_adapter(settings)
    lora = settings.lora if named.adapter is None else adapter_settings(read_adapter(named.adapter))
    autocast = torch.bfloat16 if training["bf16"] else torch.float16 if training["fp16"] else None
    checkpointing = None
    for old in ("gradient_checkpointing", "activation_checkpointing"):
        if training.get(old):  # the older transformers know only the first
            checkpointing = dict(training[f"{old}_kwargs"] or {})
    return Request(
        model=ModelSpec(named.base, settings.dtype, lora, autocast, checkpointing),
        selection=replace(settings.selection, reuse_forward=False, reuse_offload=False),
        rows=Rows(tokens, labelled),
        micro_batch=micro_batch,
        micro_batches=micro_batches,
        optimizer=str(training["optim"]),
    )


def _notes(settings: RunSettings, request: Request, outlook: Outlook) -> list[str]:
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


def _ways_table(request: Request, ways: Mapping[str, Way], memory: int) -> Table:
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


def _proposals_table(request: Request, proposals: Mapping[str, Proposals]) -> Table:
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


def _values(
    settings: RunSettings,
    request: Request,
    outlook: Outlook,
    memory: int,
    ways: Mapping[str, Way],
    proposals: Mapping[str, Proposals],
    notes: Sequence[str],
) -> dict[str, Any]:
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
