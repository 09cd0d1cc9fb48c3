"""What a coreset step sends over the network, next to what the engine sends anyway. Writes docs/results/traffic.md.

    python benchmarks/traffic.py

The formulas are those of `colm plan`. Two gloo processes check them first: a tiny Llama in fully_shard takes a coreset
step while the bytes of its collectives are counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from setting import describe_setting

from colm import CoresetSelector, SelectionConfig
from colm.lab.plan.fully_shard import find_units
from colm.lab.plan.sharding import Sharding, padded_bytes
from colm.lab.plan.traffic import Model, Selection, Traffic, count_traffic
from colm.losses import example_losses

PAGE = Path(__file__).parents[1] / "docs" / "results" / "traffic.md"
WORLD, ROWS, MICRO_BATCHES, TOKENS, COORDINATES = 2, 4, 2, 32, 256
TOKENS_8B, MICRO_BATCH_8B, SOURCES_8B, H_8B = 1024, 4, 14, SelectionConfig().coordinates
MIB, GIB = 2**20, 2**30

TEXT = """# What a step sends

The selection compares rows of all GPUs, so it sends short features, not gradients: of each row h = {h:,} numbers
instead of the D of the value projection ({dim:,} in an 8 B Llama). It also sums D numbers for each source. With sharded
weights, these dominate: a selection pass gathers them once for each of its forwards.

{setting}

## On paper: 64 GPUs, Llama-3-8B

Bytes that each GPU sends in a step, with FSDP2 in bfloat16, ring collectives, rows of {tokens:,} tokens in
micro-batches of {micro_batch}, half of the pool kept, {sources} sources, and Adam features. The Trainer reduces
gradients once a step.

| | {heads} |
| --- | {lines} |
{paper}

The features grow with N, and hardly with the GPUs: {growth}.
Whole gradients of the value projection would be {whole} at N = {largest:,}; no feature matrix is gathered whole. Larger
micro-batches in the pass (`selection.pass_tokens`) gather weights less often, and leave the features as they are.

## Checked on two processes

A Llama of {size:,} parameters in `fully_shard` takes one coreset step of {rows} rows on two gloo processes, with
h = {small_h}; bytes of its collectives, counted where they are called, and by the formulas.

| part | counted | formula |
| --- | ---: | ---: |
{checked}

The selection's short backward gathers the last layers again, which the formula leaves out, as it does counts of 8
bytes. How many rows change GPU is random; the formula gives the mean.
"""


def shape(size: str) -> Any:
    from transformers import LlamaConfig

    if size == "tiny":
        return LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
        )
    return LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )


def build(size: str, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(shape(size), dtype=dtype)


def sizes(model: Any, gpus: int) -> Model:
    """Return the bytes of a model as fully_shard sends them."""
    *layers, _ = find_units(model)
    whole = padded_bytes(model.parameters(), gpus)
    return Model(whole, sum(padded_bytes(layer.weights, gpus) for layer in layers), whole)


GATHERS, REDUCES = ("all_gather_into_tensor", "all_gather_single"), ("reduce_scatter_tensor", "reduce_scatter_single")
"""Of torch.distributed, before and from 2.13."""


class Collectives:
    """Counts the bytes that a ring sends for each kind of collective."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        kinds = dict.fromkeys(GATHERS, "weights") | dict.fromkeys(REDUCES, "gradients")
        for name, kind in (kinds | {"all_gather": "rows", "all_reduce": "sums"}).items():
            if hasattr(dist, name):
                setattr(dist, name, self._counted(kind, getattr(dist, name)))

    def _counted(self, kind: str, call: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            given = [value if isinstance(value, list) else [value] for value in (*args, *kwargs.values())]
            tensors = [value for value in given if isinstance(value[0], torch.Tensor)]
            size = max(sum(tensor.numel() * tensor.element_size() for tensor in value) for value in tensors)
            key = "features" if kind == "rows" and tensors[0][0].is_floating_point() else kind
            self.sent[key] += size * (WORLD - 1) // WORLD * (2 if kind == "sums" else 1)
            return call(*args, **kwargs)

        return counted


def measure() -> dict[str, int]:
    """Take a coreset step on this rank, and return what its collectives send."""
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = build("tiny", torch.float32)
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model, reshard_after_forward=False)
    optimizer = torch.optim.AdamW(model.parameters())
    config = SelectionConfig(small_sources="none", noise_every=0, coordinates=COORDINATES)
    selector = CoresetSelector(model, config, source_sizes={"a": 1000, "b": 1000}, optimizer=optimizer)
    torch.manual_seed(1 + dist.get_rank())
    ids = torch.randint(1, 256, (MICRO_BATCHES, ROWS, TOKENS))
    pool = [{"input_ids": one, "attention_mask": torch.ones_like(one), "labels": one.clone()} for one in ids]
    collectives = Collectives()
    coreset = selector.select(pool, ["a", "b"] * (ROWS * MICRO_BATCHES // 2))
    found = {"selection_weights": collectives.sent["weights"], "sums": collectives.sent["sums"]}
    found |= {"features": collectives.sent["features"], "facts": collectives.sent["rows"]}
    collectives.sent.clear()
    kept = selector.take(pool, coreset)
    found["moved"] = collectives.sent["rows"]
    collectives.sent.clear()
    for number, batch in enumerate(kept):
        model.set_requires_gradient_sync(number == len(kept) - 1)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        example_losses(model(**inputs, use_cache=False).logits, batch["labels"]).mean().backward()
    found["weights"] = collectives.sent["weights"]
    found["gradients"] = collectives.sent["gradients"]
    return found


def planned(gpus: int, rows: int, size: str = "8b", sources: int = SOURCES_8B) -> Traffic:
    """Return the formulas' bytes for a pool of `rows` over all GPUs."""
    tiny = size == "tiny"
    micro_batch = ROWS if tiny else MICRO_BATCH_8B
    with torch.device("meta"):
        model = build(size, torch.float32 if tiny else torch.bfloat16)
    config, micro_batches = model.config, rows // gpus // micro_batch
    selection = Selection(
        rows=rows,
        kept=rows // 2,
        tokens=TOKENS if tiny else TOKENS_8B,
        sources=sources,
        coordinates=COORDINATES if tiny else H_8B,
        dim=dimension(config),
        forwards=micro_batches,
        noise_every=0,
    )
    return count_traffic(Sharding("fsdp2", gpus), sizes(model, gpus), selection, micro_batches)


def dimension(config: Any) -> int:
    """Return D, the weights of the value projection."""
    return int(config.hidden_size * config.hidden_size // config.num_attention_heads * config.num_key_value_heads)


def show(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / MIB:,.1f} MiB"


def write_page(found: dict[str, int]) -> None:
    names = {
        "weights": "weights, training",
        "gradients": "gradients",
        "selection_weights": "weights, selection",
        "features": "features",
        "sums": "sums of features",
        "facts": "facts of rows",
        "moved": "rows that change GPU",
    }
    pools = (1024, 4096)
    paper = [planned(64, rows) for rows in pools]
    lines = [f"| {text} | {' | '.join(show(getattr(sent, name)) for sent in paper)} |" for name, text in names.items()]
    small = [sent.selection - sent.selection_weights for sent in paper]
    for text, values in (
        ("the engine alone", [show(sent.engine) for sent in paper]),
        ("added by the selection, without weights", [show(size) for size in small]),
        (
            "the same, share of the engine's",
            [f"{size / sent.engine:.2%}" for size, sent in zip(small, paper, strict=True)],
        ),
        (
            "the selection's weights, share of the engine's",
            [f"{sent.selection_weights / sent.engine:.0%}" for sent in paper],
        ),
    ):
        lines.append(f"| {text} | {' | '.join(values)} |")
    tiny = planned(WORLD, WORLD * ROWS * MICRO_BATCHES, "tiny", sources=2)
    grown = [(gpus, planned(gpus, 4096).features) for gpus in (8, 64, 512)]
    checked = [f"| {text} | {found[name]:,} | {getattr(tiny, name):,} |" for name, text in names.items()]
    with torch.device("meta"):
        size = sum(weight.numel() for weight in build("tiny", torch.float32).parameters())
    page = TEXT.format(
        h=H_8B,
        dim=dimension(shape("8b")),
        setting=f"`python benchmarks/traffic.py`; {describe_setting('0')}.",
        tokens=TOKENS_8B,
        micro_batch=MICRO_BATCH_8B,
        sources=SOURCES_8B,
        heads=" | ".join(f"N = {rows:,}" for rows in pools),
        lines=" | ".join("---:" for _ in pools),
        paper="\n".join(lines),
        growth=", ".join(f"{show(sent)} on {gpus}" for gpus, sent in grown) + f" for N = {pools[-1]:,}",
        whole=show(pools[-1] * dimension(shape("8b")) * 4 * 63 / 64),
        largest=pools[-1],
        size=size,
        rows=WORLD * ROWS * MICRO_BATCHES,
        small_h=COORDINATES,
        checked="\n".join(checked),
    )
    PAGE.write_text(page, encoding="utf-8")
    print(page)


def main() -> None:
    if "RANK" in os.environ:
        found = measure()
        if dist.get_rank() == 0:
            print("\n" + json.dumps(found), flush=True)
        dist.barrier()
        dist.destroy_process_group()
        return
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={WORLD}", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"')]
    if done.returncode or not lines:
        raise SystemExit(done.stderr[-3000:])
    write_page(json.loads(lines[-1]))


if __name__ == "__main__":
    main()
