"""`colm plan`: predict a run's GPU memory and time, without a GPU."""

from __future__ import annotations

import argparse
from typing import Any

from colm.lab.cli.arguments import Commands, add_config, add_json
from colm.lab.cli.console import make_console

ENGINES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
"""As in `colm.lab.plan.sharding`, which imports torch."""


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_config(commands, "plan", "predict memory and time without a GPU, and propose sizes that fit")
    add = command.add_argument
    add("--gpu-memory", required=True, metavar="SIZE", help="memory of one GPU: 24GiB, 80GB, or bytes: 80e9")
    add("--sequence-length", type=int, metavar="N", help="tokens in the longest rows (default: data.max_length)")
    add(
        "--labeled",
        "--labelled",
        dest="labelled",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="fraction of each row's tokens that have a label (default: 1)",
    )
    add("--gpus", type=int, metavar="N", help="GPUs that train together, each with its own micro-batches (default: 1)")
    add(
        "--shard",
        choices=ENGINES,
        help="how the GPUs share the model: ddp (each holds all of it), fsdp2 (fully_shard), or a stage of DeepSpeed's "
        "ZeRO (default: what the configuration sets, else ddp)",
    )
    add_json(command, "the tables, with sizes in bytes, and the notes")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Print the cost of training the pool, the coreset's rows, and the coreset step, and what fits.

    Raises:
        ConfigError: a value out of range, a model or engine that cannot be planned, or too little memory.
    """
    from colm.lab.plan.memory import parse_memory
    from colm.lab.run.settings import load_settings

    memory = parse_memory(args.gpu_memory)
    settings = load_settings(args.config, args.overrides)
    from colm.lab.cli.plan_notes import list_notes
    from colm.lab.cli.plan_tables import list_values, parts_table, proposals_table, ways_table
    from colm.lab.plan.outlook import Outlook
    from colm.lab.plan.propose import propose
    from colm.lab.plan.request import make_request

    request = make_request(settings, args.sequence_length, args.labelled, gpus=args.gpus, shard=args.shard)
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
    notes = list_notes(settings, request, outlook, ways["coreset_step"])
    if args.json:
        return list_values(settings, request, outlook, memory, ways, proposals, notes)
    console = make_console()
    console.print((ways_table if request.sharding is None else parts_table)(request, ways, memory))
    console.print(proposals_table(request, proposals))
    for note in notes:
        console.print(f"- {note}", markup=False, highlight=False)
    return None
