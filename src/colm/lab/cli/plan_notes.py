"""The notes of `colm plan`: what a reader of its tables should know."""

from __future__ import annotations

from colm.lab.plan.attention import PLANNED, is_flash
from colm.lab.plan.memory import show_memory
from colm.lab.plan.outlook import RESERVE, Outlook, Request, Way
from colm.lab.plan.sharding import Sharding
from colm.lab.run.settings import RunSettings

ENGINE_NOTES = {
    "ddp": "DistributedDataParallel: each GPU holds all of the model, and buckets as large as its gradients.",
    "fsdp2": "FSDP2: fully_shard of each layer and of the model. A layer's whole weights are there "
    "while it runs, with those of the next; embedding, last norm and head stay whole from the forward on.",
    "zero1": "ZeRO-1: each GPU holds all weights and gradients, and its part of the optimizer states.",
    "zero2": "ZeRO-2: each GPU holds all weights, its part of gradients and optimizer states, and a bucket of "
    "gradients ({bucket} elements).",
    "zero3": "ZeRO-3: each GPU holds its part of everything, a bucket of gradients ({bucket} elements), and whole "
    "weights up to stage3_max_live_parameters, small ones always.",
}

LOGITS = 0.25
"""Part of the activations from which logits are worth a note."""


def list_notes(settings: RunSettings, request: Request, outlook: Outlook, step: Way) -> list[str]:
    """Return what a reader of the tables should know, a sentence or two each.

    Args:
        settings: of the run.
        request: made of them.
        outlook: of the request.
        step: its coreset step.
    """
    rows = request.rows
    share = "every token" if rows.labelled == 1 else f"{rows.labelled:.0%} of the tokens"
    passes = settings.selection.features != "none"
    through = "; every row of the pool goes through the selection pass" if passes else ""
    notes = [
        f"The worst case: all rows have {rows.tokens:,} tokens, {share} of them with a label{through}. Shorter rows "
        "take less.",
        f"Fits means at most {1 - RESERVE:.0%} of the memory: the rest is for the CUDA context, fragmentation and the "
        "plan's error.",
        *_engine_notes(settings, request, outlook),
        "Time counts the operations of matrix products and attention, relative to training the whole pool; it excludes "
        "picking and waiting for data.",
    ]
    if step.noise:
        notes.append(
            "A coreset step includes its share of the gradient noise measurement, every "
            f"{request.selection.noise_every} steps (selection.noise_every): {step.noise / step.flops:.1%} of its time."
        )
    if not passes:
        measured = " The memory under selection is that measurement's." if step.noise else ""
        notes.append(
            "features='none': there is no selection pass, so a coreset step costs the same as training its rows."
            + measured
        )
    if step.logits > LOGITS * step.activations and settings.selection.train_head == "labeled":
        notes.append(
            f"Logits take {show_memory(step.logits)} GiB of the activations. selection.train_head=chunked keeps only a "
            "chunk of them, and computes them again in the backward, so larger micro-batches fit."
        )
    flash = is_flash(settings.attention)
    if settings.attention not in PLANNED and not flash:
        notes.append(f"attention={settings.attention!r} is not counted: the plan is for PyTorch's own attention.")
    if settings.selection.padding_free and not flash:
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


def count_sources(settings: RunSettings) -> int:
    """Return the sources of the data as far as the settings tell: the mixture's entries, or one."""
    return max(1, len(settings.values["mixture"]))


def _engine_notes(settings: RunSettings, request: Request, outlook: Outlook) -> list[str]:
    sharding = request.sharding
    if sharding is None:
        return [
            "Several GPUs (DistributedDataParallel): the same on each, plus the size of the gradients once more for "
            "its buckets. The pool is the sum over GPUs. For sharded weights: --gpus 8 --shard fsdp2."
        ]
    bucket = "hidden size squared" if sharding.bucket is None else f"{sharding.bucket:,}"
    notes = [ENGINE_NOTES[sharding.engine].format(bucket=bucket)]
    if sharding.engine == "fsdp2" and sharding.deferred and request.micro_batches > 1:
        notes.append(
            "With gradient accumulation the Trainer reduces FSDP2's gradients in the last micro-batch only, so each "
            "GPU holds all of them until then. To reduce them in each: training.accelerator_config="
            "'{gradient_accumulation_kwargs: {sync_each_batch: true}}'."
        )
    return [*notes, _traffic_note(settings, request, outlook, sharding)]


def _traffic_note(settings: RunSettings, request: Request, outlook: Outlook, sharding: Sharding) -> str:
    sources = count_sources(settings)
    sent = outlook.traffic(request.micro_batch, request.micro_batches, sources)
    assert sent is not None
    weights = (
        f", {show_memory(sent.selection_weights)} of it weights for its forwards" if sharding.splits_weights else ""
    )
    of = f"{sources} sources" if sources > 1 else "one source"
    return (
        f"Each GPU sends {show_memory(sent.engine)} GiB a step over the network for the engine, and "
        f"{show_memory(sent.selection)} GiB for a selection from {of}{weights}."
    )
