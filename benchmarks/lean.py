"""Time and memory of training the same rows, by how they are batched and how the output head and the loss are computed.

    python benchmarks/lean.py
    python benchmarks/lean.py --cases llama-128k-lora --mixtures chat --json
    python benchmarks/lean.py --cases llama-128k-lora --selection

Two steps of sixteen rows in micro-batches of four, forward and backward, float32, one thread, on the demo's mixture
(without a chat template) or on conversations (`chat`: several of its rows as turns, nearly all tokens labeled). The
ways take turns in each round; a figure is the median over rounds of the ratio to the first way in the same round, in
CPU seconds for all rows. Grouping by length composes other steps. Memory is what autograd holds after the forward of
the micro-batch with the most padded tokens. Gradients are compared with those of the same loss on all logits, in the
same steps. TRL's head runs on labeled positions where Triton does, on a GPU, and on all positions elsewhere; "labeled
positions" lets it do so here. `--selection` instead times a step that picks 32 of 64 rows by gradients, against the
Trainer's step on 32 rows.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from setting import describe_setting
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from colm import CoresetSelector, SelectionConfig
from colm.lab.data.demo import demo_rows
from colm.lab.data.formats import Rendering
from colm.lab.data.tokenize import tokenize_rows
from colm.lean import LeanHead
from colm.losses import example_mean, mean_over_examples
from colm.models import load_model, load_tokenizer
from colm.step.balance import split_padded
from colm.step.pool import count_labelled

ROWS, MICRO_BATCH, CHUNK = 16, 4, 128
CASES = {
    f"{name}-{kind}": (name, kind)
    for name in ("llama-32k", "llama-128k", "llama-256k", "smollm2")
    for kind in ("lora", "full")
    if name != "smollm2" or kind == "lora"
}
VOCABULARY = {"llama-32k": 32_768, "llama-128k": 131_072, "llama-256k": 262_144}
GIVEN, GROUPED = "in the given order", "all rows grouped by length"
DIVIDED, BOTH = "rows of a step divided by length, as colm does", "grouped, then divided"
EXAMPLE, TOKEN = "example mean", "token mean"

Batch = dict[str, Tensor]


class Way(NamedTuple):
    """One way to train rows."""

    name: str
    order: str
    loss: Callable[[Any, Batch, int, int], Tensor]  # model, micro-batch, the step's rows, the step's labeled tokens
    kind: str = TOKEN
    model: Any = None  # if it is not the shared one
    flat: bool = False


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


def draw_rows(count: int, vocabulary: int, mixture: str) -> tuple[Any, list[dict[str, Any]]]:
    """Return a tokenizer and rows in a random order of the mixture; ids are taken modulo `vocabulary`."""
    tokenizer = load_tokenizer("demo")
    rendering = Rendering(512, chat=False)
    rows = tokenize_rows(
        [demo_rows(1000, 0)], tokenizer, format_name="prompt_completion", rendering=rendering, source_column="source"
    )
    generator = torch.Generator().manual_seed(0)
    order = iter(torch.randperm(len(rows), generator=generator).tolist())
    drawn = []
    for _ in range(count):
        turns = 1 if mixture == "demo" else int(torch.randint(1, 5, (1,), generator=generator))
        parts = [rows[next(order)] for _ in range(turns)]
        ids = [token % vocabulary for part in parts for token in part["input_ids"]]
        labels = [token % vocabulary if token >= 0 else token for part in parts for token in part["labels"]]
        if mixture == "chat":
            labels[16:] = ids[16:]  # a short question, and long answers
        drawn.append(
            {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels, "source": parts[0]["source"]}
        )
    return tokenizer, drawn


def ways(model: Any, trl_model: Any) -> list[Way]:
    """Return the ways; the first is what the others are compared with."""
    labeled, chunked = LeanHead(model), LeanHead(model, chunk_tokens=CHUNK)
    trl = SFTTrainer(
        trl_model,
        SFTConfig("unused", use_cpu=True, report_to=[], bf16=False, max_length=None, gradient_checkpointing=False),
        train_dataset=Dataset.from_list([{"input_ids": [1, 2], "labels": [1, 2]}]),
        processing_class=load_tokenizer("demo"),
    )

    def own(model: Any, batch: Batch, rows: int, tokens: int) -> Tensor:
        loss: Tensor = model(**batch, num_items_in_batch=tokens).loss
        return loss

    def of_trl(model: Any, batch: Batch, rows: int, tokens: int) -> Tensor:
        loss: Tensor = trl.compute_loss(model, dict(batch), num_items_in_batch=tokens)
        return loss

    def of_trl_labeled(model: Any, batch: Batch, rows: int, tokens: int) -> Tensor:
        with patch("trl.trainer.utils._use_triton", lambda device: True):  # the kernels themselves stay PyTorch's
            return of_trl(model, batch, rows, tokens)

    def all_logits(model: Any, batch: Batch, rows: int, tokens: int) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        return example_mean(model(**inputs).logits, batch["labels"], num_examples=rows)

    def lean(head: LeanHead) -> Callable[[Any, Batch, int, int], Tensor]:
        return lambda model, batch, rows, tokens: mean_over_examples(
            head(model, batch), batch["labels"], num_examples=rows
        )

    def lean_tokens(model: Any, batch: Batch, rows: int, tokens: int) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        with labeled.reading(batch["labels"]):
            return labeled.token_losses(model(**inputs)).sum() / tokens

    return [
        Way("Trainer", GIVEN, own),
        Way("Trainer, group_by_length", GROUPED, own),
        Way("TRL", GIVEN, of_trl, model=trl_model),
        Way("TRL, labeled positions", GIVEN, of_trl_labeled, model=trl_model),
        Way("TRL, labeled positions, group_by_length", GROUPED, of_trl_labeled, model=trl_model),
        Way("TRL, labeled positions, padding-free", GIVEN, of_trl_labeled, model=trl_model, flat=True),
        Way("example mean on all logits", DIVIDED, all_logits, EXAMPLE),
        Way("colm, labeled positions", DIVIDED, lean(labeled), EXAMPLE),
        Way("colm, labeled positions, token mean", DIVIDED, lean_tokens),
        Way("colm, labeled positions, group_by_length", BOTH, lean(labeled), EXAMPLE),
        Way(f"colm, labeled positions in chunks of {CHUNK}", DIVIDED, lean(chunked), EXAMPLE),
    ]


def batch_rows(way: Way, steps: list[list[dict[str, Any]]], collator: Any) -> list[list[Batch]]:
    """Return the micro-batches of each step."""
    if way.order in (GROUPED, BOTH):
        rows = sorted((row for step in steps for row in step), key=lambda row: len(row["input_ids"]))
        parts = cut(rows, MICRO_BATCH)
        order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(0)).tolist()
        steps = cut([row for place in order for row in parts[place]], len(steps[0]))
    split = split_by_length if way.order in (DIVIDED, BOTH) else cut
    return [[collate(way, part, collator) for part in split(step, MICRO_BATCH)] for step in steps]


def split_by_length(rows: list[dict[str, Any]], size: int) -> list[list[dict[str, Any]]]:
    """Return as many micro-batches as `cut` does, divided as colm divides a step."""
    rows = sorted(rows, key=lambda row: -len(row["input_ids"]))
    lengths = [len(row["input_ids"]) for row in rows]
    labeled = [sum(label >= 0 for label in row["labels"]) for row in rows]
    parts = split_padded(range(len(rows)), len(cut(rows, size)), lengths, labeled)
    return [[rows[place] for place in part] for part in parts]


def cut(values: list[Any], size: int) -> list[list[Any]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def collate(way: Way, rows: list[dict[str, Any]], collator: Any) -> Batch:
    """Return rows as a padded micro-batch, or one after another with their positions."""
    plain = [{key: value for key, value in row.items() if key != "source"} for row in rows]
    if not way.flat:
        return dict(collator(plain))
    joined = {key: [value for row in plain for value in row[key]] for key in ("input_ids", "labels")}
    joined["position_ids"] = [place for row in plain for place in range(len(row["input_ids"]))]
    batch = {key: torch.tensor(values)[None] for key, values in joined.items()}
    batch["labels"][batch["position_ids"] == 0] = -100
    return batch


def train_step(way: Way, model: Any, batches: list[Batch], rows: int = ROWS) -> float:
    """Run a step's forwards and backwards, and return its CPU seconds."""
    model = way.model or model
    model.zero_grad(set_to_none=True)
    tokens = int(sum(count_labelled(batch["labels"]).sum() for batch in batches))
    began = time.process_time()
    for batch in batches:
        way.loss(model, batch, rows, tokens).backward()
    return time.process_time() - began


def held_bytes(way: Way, model: Any, batch: Batch) -> int:
    """Return the bytes that autograd holds after a forward, without the model's weights."""
    model = way.model or model
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


def measure(name: str, kind: str, mixture: str, rounds: int, without: list[str]) -> dict[str, dict[str, float]]:
    """Return way -> its figures: ratio of time (with the lowest and highest), MiB held, error of the gradient."""
    model = build_model(name, kind)
    tokenizer, rows = draw_rows(2 * ROWS, model.get_input_embeddings().num_embeddings, mixture)
    steps = cut(rows, ROWS)
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    all_ways = [way for way in ways(model, build_model(name, kind)) if way.name not in without]
    known: dict[str, Tensor] = {}
    found: dict[str, dict[str, float]] = {}
    batches = {way.name: batch_rows(way, steps, collator) for way in all_ways}
    train_step(all_ways[0], model, batches[all_ways[0].name][0][:1])  # warms up
    for way in all_ways:
        largest = max((batch for step in batches[way.name] for batch in step), key=lambda each: each["labels"].numel())
        found[way.name] = {"largest_held_mib": held_bytes(way, model, largest) / 2**20, "error": math.nan}
    ratios: dict[str, list[float]] = {way.name: [] for way in all_ways}
    for number in range(rounds):
        took: dict[str, float] = {}
        for way in all_ways:
            first, *others = batches[way.name]
            took[way.name] = train_step(way, model, first)
            if number == 0 and way.order not in (GROUPED, BOTH):  # else other steps
                ours = gradient(way.model or model)
                same = known.setdefault(way.kind, ours)
                if same is not ours:
                    found[way.name]["error"] = float((ours - same).norm() / same.norm())
            took[way.name] += sum(train_step(way, model, step) for step in others)
        for way_name, seconds in took.items():
            ratios[way_name].append(seconds / took[all_ways[0].name])
    for way_name, each in ratios.items():
        found[way_name] |= {"time": statistics.median(each), "least": min(each), "most": max(each)}
    return found


def measure_selection(name: str, kind: str, mixture: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return the time of a step that picks 32 of 64 rows by gradients, relative to the Trainer's on 32 rows."""
    model = build_model(name, kind)
    tokenizer, rows = draw_rows(4 * ROWS, model.get_input_embeddings().num_embeddings, mixture)
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)
    trainer, lean = Way("Trainer, 32 rows", GIVEN, ways(model, build_model(name, kind))[0].loss), LeanHead(model)
    half = batch_rows(trainer, [rows[: 2 * ROWS]], collator)[0]
    pool = [collate(trainer, part, collator) for part in cut(rows, 2 * MICRO_BATCH)]
    selector = CoresetSelector(model, SelectionConfig(keep=0.5, small_sources="none"))
    shares, whole = [], []
    for _ in range(rounds + 1):  # the first warms up
        began = time.process_time()
        kept = selector.take(pool, selector.select(pool, [row["source"] for row in rows]))
        selected = time.process_time() - began
        selector.commit()
        way = Way("", GIVEN, lambda model, batch, rows, tokens: lean(model, batch).sum() / rows)
        trained = train_step(way, model, kept, 2 * ROWS)
        plain = train_step(trainer, model, half, 2 * ROWS)
        whole.append((selected + trained) / plain)
        shares.append(selected / (selected + trained))
    held = {"time": statistics.median(whole[1:]), "least": min(whole[1:]), "most": max(whole[1:])}
    return {"colm, 32 of 64 rows": {**held, "selection": statistics.median(shares[1:])}}


def main() -> None:
    """Measure the cases and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--mixtures", nargs="+", choices=("demo", "chat"), default=("demo", "chat"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without", nargs="+", default=[], metavar="WAY", help="ways to leave out")
    parser.add_argument("--selection", action="store_true", help="time a step with a selection instead")
    parser.add_argument("--json", action="store_true", help="print one line with the figures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    if not options.json:
        print(f"`python benchmarks/lean.py {' '.join(sys.argv[1:])}`; {describe_setting('0')}.\n")
    for case in options.cases:
        for mixture in options.mixtures:
            if options.selection:
                held = measure_selection(*CASES[case], mixture, options.rounds)
            else:
                held = measure(*CASES[case], mixture, options.rounds, options.without)
            found[f"{case}-{mixture}"] = held
            if not options.json:
                print(table(f"{case}, {mixture}", held), flush=True)
    if options.json:
        print(json.dumps(found))


def table(case: str, figures: dict[str, dict[str, float]]) -> str:
    """Return a case's figures in Markdown."""
    if "selection" in next(iter(figures.values())):
        return "\n".join(
            f"{case}, {way}: {held['time']:.2f} ({held['least']:.2f} to {held['most']:.2f}) of the Trainer's on 32 "
            f"rows; the selection is {held['selection']:.0%} of the step."
            for way, held in figures.items()
        )
    lines = [
        f"## {case}\n",
        "| way | time | range | MiB held, largest micro-batch | gradient's error |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for way, held in figures.items():
        error = "" if math.isnan(held["error"]) else f"{held['error']:.0e}"
        lines.append(
            f"| {way} | {held['time']:.2f} | {held['least']:.2f} to {held['most']:.2f} | "
            f"{held['largest_held_mib']:,.0f} | {error} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
