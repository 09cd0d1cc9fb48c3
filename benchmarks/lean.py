"""Time and memory of training the rows of a step, by how the output head and the loss are computed.

    python benchmarks/lean.py
    python benchmarks/lean.py --cases llama-128k-lora --json

Sixteen rows of the demo's mixture (without a chat template) in micro-batches of four, forward and backward, float32,
one thread. The ways take turns in each round; a figure is the median over rounds of the ratio to the first way in the
same round, in CPU seconds. Memory is what autograd holds after a micro-batch's forward. Gradients are compared with
those of the same loss on all logits.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from setting import describe_setting
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, LlamaConfig, LlamaForCausalLM

from colm.lab.data.demo import demo_rows
from colm.lab.data.formats import Rendering
from colm.lab.data.tokenize import tokenize_rows
from colm.lean import LeanHead
from colm.losses import example_mean, mean_over_examples
from colm.models import load_model, load_tokenizer
from colm.step.pool import count_labelled

ROWS, MICRO_BATCH, CHUNK = 16, 4, 128
CASES = {
    f"{name}-{kind}": (name, kind)
    for name in ("llama-32k", "llama-128k", "smollm2")
    for kind in ("lora", "full")
    if name != "smollm2" or kind == "lora"
}
VOCABULARY = {"llama-32k": 32_768, "llama-128k": 131_072}

Batch = dict[str, Tensor]


class Way(NamedTuple):
    """One way to train a step's rows."""

    name: str
    by_length: bool
    loss: Callable[[Any, Batch, int, int], Tensor]  # model, micro-batch, the step's rows, the step's labeled tokens


def build_model(name: str, kind: str) -> Any:
    """Return a model of the case in training mode."""
    torch.manual_seed(0)
    if name == "smollm2":
        model = load_model("demo", dtype="float32")
    else:
        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 6}
        heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY[name], tie_word_embeddings=True, **sizes, **heads))
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
        for weight_name, weight in model.named_parameters():
            if "lora_B" in weight_name:
                torch.nn.init.normal_(weight, std=0.01)
    return model.train()


def draw_steps(count: int, vocabulary: int) -> tuple[Any, list[list[dict[str, Any]]]]:
    """Return a tokenizer and the rows of steps, in a random order of the mixture; ids are taken modulo `vocabulary`."""
    tokenizer = load_tokenizer("demo")
    rendering = Rendering(512, chat=False)
    rows = tokenize_rows(
        [demo_rows(1000, 0)], tokenizer, format_name="prompt_completion", rendering=rendering, source_column="source"
    )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    keys = ("input_ids", "attention_mask", "labels")
    drawn = [
        {key: [i % vocabulary if i >= 0 else i for i in rows[place][key]] for key in keys}
        for place in order[: count * ROWS]
    ]
    return tokenizer, [drawn[start : start + ROWS] for start in range(0, len(drawn), ROWS)]


def ways(model: Any) -> list[Way]:
    """Return the ways; the first is what the others are compared with."""
    labeled, chunked = LeanHead(model), LeanHead(model, chunk_tokens=CHUNK)

    def own(model: Any, batch: Batch, rows: int, tokens: int) -> Tensor:
        loss: Tensor = model(**batch, num_items_in_batch=tokens).loss
        return loss

    def all_logits(model: Any, batch: Batch, rows: int, tokens: int) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return example_mean(model(**inputs).logits, batch["labels"], num_examples=rows)

    def lean(head: LeanHead) -> Callable[[Any, Batch, int, int], Tensor]:
        return lambda model, batch, rows, tokens: mean_over_examples(
            head(model, batch), batch["labels"], num_examples=rows
        )

    return [
        Way("Trainer's own loss, rows in order", False, own),
        Way("Trainer's own loss, rows of a step by length", True, own),
        Way("example mean on all logits, by length", True, all_logits),
        Way("labeled positions, by length", True, lean(labeled)),
        Way(f"labeled positions in chunks of {CHUNK}, by length", True, lean(chunked)),
    ]


def micro_batches(rows: list[dict[str, Any]], collator: Any, *, by_length: bool) -> list[Batch]:
    """Return a step's rows in padded micro-batches."""
    if by_length:
        rows = sorted(rows, key=lambda row: len(row["input_ids"]))
    parts = [rows[start : start + MICRO_BATCH] for start in range(0, len(rows), MICRO_BATCH)]
    return [dict(collator([dict(row) for row in part])) for part in parts]


def train_step(way: Way, model: Any, batches: list[Batch]) -> float:
    """Run a step's forwards and backwards, and return its CPU seconds."""
    model.zero_grad(set_to_none=True)
    tokens = int(sum(count_labelled(batch["labels"]).sum() for batch in batches))
    began = time.process_time()
    for batch in batches:
        way.loss(model, batch, ROWS, tokens).backward()
    return time.process_time() - began


def held_bytes(way: Way, model: Any, batch: Batch) -> int:
    """Return the bytes that autograd holds after a forward, without the model's weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    storages: dict[int, Tensor] = {}

    def hold(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()  # a node that holds its own output would never be freed
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = tensor  # kept alive, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        loss = way.loss(model, batch, ROWS, 1)
    held = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
    del loss
    return held


def gradient(model: Any) -> Tensor:
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def measure(name: str, kind: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return way -> its figures: ratio of time (with the lowest and highest), MiB held, error of the gradient."""
    model = build_model(name, kind)
    tokenizer, steps = draw_steps(2, model.get_input_embeddings().num_embeddings)
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    all_ways, expected = ways(model), None
    found: dict[str, dict[str, float]] = {}
    ratios: dict[str, list[float]] = {way.name: [] for way in all_ways}
    for way in all_ways:
        batches = micro_batches(steps[0], collator, by_length=way.by_length)
        train_step(way, model, batches)
        ours = gradient(model)
        expected = ours if way is all_ways[2] else expected
        error = float((ours - expected).norm() / expected.norm()) if expected is not None else math.nan
        found[way.name] = {"held_mib": held_bytes(way, model, batches[0]) / 2**20, "error": error}
        found[way.name]["largest_held_mib"] = max(held_bytes(way, model, batch) for batch in batches) / 2**20
    for _ in range(rounds):
        for rows in steps:
            took = {
                way.name: train_step(way, model, micro_batches(rows, collator, by_length=way.by_length))
                for way in all_ways
            }
            for way_name, seconds in took.items():
                ratios[way_name].append(seconds / took[all_ways[0].name])
    for way_name, held in ratios.items():
        found[way_name] |= {"time": statistics.median(held), "least": min(held), "most": max(held)}
    return found


def main() -> None:
    """Measure the cases and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one line with the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    command = "python benchmarks/lean.py" + (f" --rounds {options.rounds}" if options.rounds != 3 else "")
    if not options.json:
        print(f"`{command}`; {describe_setting('0')}; two steps of {ROWS} rows, {options.rounds} rounds.\n")
    for case in options.cases:
        found[case] = measure(*CASES[case], options.rounds)
        if not options.json:
            print(table(case, found[case]), flush=True)
    if options.json:
        print(json.dumps(found))


def table(case: str, figures: dict[str, dict[str, float]]) -> str:
    """Return a case's figures in Markdown."""
    lines = [
        f"## {case}\n",
        "| way | time | range | MiB held, first micro-batch | largest | gradient's error |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for way, held in figures.items():
        error = "" if math.isnan(held["error"]) else f"{held['error']:.0e}"
        lines.append(
            f"| {way} | {held['time']:.2f} | {held['least']:.2f} to {held['most']:.2f} | "
            f"{held['held_mib']:,.0f} | {held['largest_held_mib']:,.0f} | {error} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
