"""Gather the data for the study of the estimators: slow, resumable, one file per pool.

The method itself trains SmolLM2-135M-Instruct with LoRA on the large sources of a mixture. At three
stages, pools of 64 rows of the large sources go through forward and backward. For each pool, a file
stores exact features, hidden states, losses, and, to judge selections, the inner products and l1
distances of the gradients over *all* trainable weights.

    python benchmarks/fidelity/gather.py --data mixture.jsonl --out runs/fidelity

`study.py` turns the files into tables. Without --data the demo's generated mixture is used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from setting import describe_setting

from colm import example_mean
from colm.config_parts import Pick
from colm.features.adam import AdamConstants, empty_history
from colm.features.exact import exact_features
from colm.features.locate import locate_value_site
from colm.features.spsa import draw_directions, spsa_features
from colm.lab.data.demo import demo_rows
from colm.lab.data.formats import Rendering
from colm.lab.data.read import read_rows
from colm.lab.data.tokenize import tokenize_rows
from colm.losses import example_losses
from colm.models import load_model, load_tokenizer
from colm.picking import Candidates, Scale, pick_from_features
from colm.step.pool import Pool
from colm.step.pool_info import share_facts
from colm.step.sources import count_sources, find_small_sources

STAGES = (0, 8, 24)
"""Training steps after which pools are measured."""

POOL, TRAIN_POOL, TRAIN_KEEP, LEARNING_RATE, SEED = 64, 32, 16, 5e-4, 0
MAX_LENGTH, MICRO_BATCH_TOKENS = 160, 1024
DIFFERENCE_PROBES, DIFFERENCE_EPS = 4, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
ADAM = AdamConstants(0.9, 0.999, 1e-8)


class Rows(NamedTuple):
    """Tokenized rows of the large sources."""

    tokens: list[dict[str, Any]]
    sources: list[str]
    sizes: dict[str, int]  # of all sources, including small ones

    def pool(self, positions: list[int]) -> Pool:
        """Return the rows as a pool with one row per micro-batch, so that nothing is padded."""
        keys = ("input_ids", "attention_mask", "labels")
        return Pool([{key: torch.tensor([self.tokens[p][key]]) for key in keys} for p in positions])


def load_rows(data: str | None, tokenizer: Any) -> Rows:
    rows = read_rows(data) if data else demo_rows(6000, SEED)
    sizes = count_sources(rows["source"], "source")
    small = find_small_sources(sizes, "auto")
    big = rows.filter(lambda row: row["source"] not in small)
    tokens = tokenize_rows(
        [big], tokenizer, format_name="auto", rendering=Rendering(MAX_LENGTH), source_column="source"
    )
    return Rows(tokens.to_list(), list(tokens["source"]), sizes)


def build_model() -> Any:
    torch.manual_seed(SEED)
    model = load_model("demo", dtype="float32")
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"))


def train(model: Any, rows: Rows, out: Path) -> None:
    """Train by the method, and save the adapter at each stage and every training pool's features."""
    site = locate_value_site(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    order = torch.randperm(len(rows.tokens), generator=torch.Generator().manual_seed(SEED)).tolist()
    history = empty_history(site.dim, torch.device("cpu"))
    seen: list[dict[str, Any]] = []
    for step in range(max(STAGES) + 1):
        if step in STAGES:
            torch.save(get_peft_model_state_dict(model), out / f"adapter-{step}.pt")
            torch.save(seen, out / f"steps-{step}.pt")
        if step == max(STAGES):
            break
        start = time.perf_counter()
        positions = order[step * TRAIN_POOL : (step + 1) * TRAIN_POOL]
        pool = rows.pool(positions)
        sources = [rows.sources[p] for p in positions]
        facts = share_facts(pool, sources, positions, rows.sizes)
        features = exact_features(model, site, pool, list(pool.group(range(len(pool)), MICRO_BATCH_TOKENS)))
        picked = pick_from_features(features, Candidates(facts.order, TRAIN_KEEP, facts), Pick(), Scale(history, ADAM))
        assert picked.history is not None
        history = picked.history
        seen.append({"features": features.rows(torch.arange(len(pool))), "sources": sources, "index": positions})
        total = 0.0
        model.train()
        for group in pool.group(picked.positions, MICRO_BATCH_TOKENS):
            batch = pool.collate(group)
            labels = batch.pop("labels")
            loss = example_mean(model(**batch).logits, labels, num_examples=len(picked.positions))
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step} loss {total:.4f} {time.perf_counter() - start:.0f} s", flush=True)


def full_gradients(model: Any, pool: Pool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return each row's gradient over all LoRA weights, its loss, and its mean and last hidden state.

    One backward per micro-batch: hooks on the LoRA matrices store inputs and output gradients, whose
    product, row by row, is each example's gradient.
    """
    maps = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    sizes = [m.weight.numel() for _, m in maps]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    gradients = torch.zeros(len(pool), sum(sizes))
    losses, means, lasts = torch.zeros(len(pool)), [None] * len(pool), [None] * len(pool)
    for group in pool.group(range(len(pool)), MICRO_BATCH_TOKENS):
        batch = pool.collate(group, side="right")
        labels = batch.pop("labels")
        handles = [
            module.register_forward_hook(partial(_keep_rows, into=gradients[:, start : start + size], rows=group))
            for (_, module), start, size in zip(maps, starts, sizes, strict=True)
        ]
        model.eval()
        output = model(**batch, output_hidden_states=True)
        found = example_losses(output.logits, labels)
        torch.autograd.grad(found.sum(), [m.weight for _, m in maps])
        for handle in handles:
            handle.remove()
        hidden, mask = output.hidden_states[-1].detach(), batch["attention_mask"]
        losses[group] = found.detach()
        for row, position in enumerate(group):
            used = hidden[row, : int(mask[row].sum())]
            means[position], lasts[position] = used.mean(0), used[-1].clone()
    return gradients, losses, torch.stack(means), torch.stack(lasts)


def _keep_rows(module: Any, args: Any, output: Tensor, *, into: Tensor, rows: list[int]) -> None:
    """Write each example's gradient of a linear map's weight into `rows` of a matrix after the output's backward."""
    inputs = args[0].detach()

    def write(gradient: Tensor) -> None:
        into[rows] = torch.einsum("nto,nti->noi", gradient, inputs).flatten(1)

    output.register_hook(write)


def check_against_backward(model: Any, pool: Pool, gradients: Tensor, position: int) -> float:
    """Return the relative error of one row, compared with its own backward."""
    batch = pool.collate([position])
    labels = batch.pop("labels")
    weights = [m.weight for _, m in model.named_modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    found = torch.autograd.grad(example_losses(model(**batch).logits, labels).sum(), weights)
    expected = torch.cat([gradient.flatten() for gradient in found])
    return float((gradients[position] - expected).norm() / expected.norm())


def measure_pool(model: Any, rows: Rows, positions: list[int], *, differences: bool) -> dict[str, Any]:
    pool = rows.pool(positions)
    site = locate_value_site(model)
    gradients, losses, mean, last = full_gradients(model, pool)
    distances = torch.zeros(len(pool), len(pool), dtype=torch.float64)
    for columns in torch.split(gradients, 2**16, dim=1):
        distances += torch.cdist(columns, columns, p=1.0)
    result: dict[str, Any] = {
        "sources": [rows.sources[p] for p in positions],
        "index": positions,
        "tokens": pool.lengths,
        "losses": losses,
        "mean_hidden": mean,
        "last_hidden": last,
        "products": (gradients @ gradients.T).double(),
        "l1": distances,
        "backward_error": check_against_backward(model, pool, gradients, len(pool) // 2),
    }
    weights = [m.weight for _, m in model.named_modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    start = sum(w.numel() for w in weights[: next(i for i, w in enumerate(weights) if w is site.weight)])
    result["features"] = gradients[:, start : start + site.dim].clone()  # the selection pass's result
    del gradients
    if differences:
        groups = list(pool.group(range(len(pool)), MICRO_BATCH_TOKENS))
        passed = exact_features(model, site, pool, groups).rows(torch.arange(len(pool)))
        result["pass_error"] = float((passed - result["features"]).norm() / passed.norm())
        directions = draw_directions(site, DIFFERENCE_PROBES, torch.Generator().manual_seed(SEED))
        small_groups = list(pool.group(range(len(pool)), MICRO_BATCH_TOKENS // DIFFERENCE_PROBES))
        result["directions"] = directions
        result["slopes"] = {}
        for eps in DIFFERENCE_EPS:
            estimates = spsa_features(model, site, pool, small_groups, directions, eps)
            result["slopes"][eps] = estimates.slopes
    return result


def describe_run(out: Path, data: str | None, rows: Rows) -> None:
    """Record the run's data, or check that a resumed run uses the same data."""
    name = Path(data).name if data else "the demo's generated mixture"
    text = json.dumps([rows.sizes, [row["input_ids"] for row in rows.tokens]])
    about = {
        "setting": describe_setting(str(SEED)),
        "data": f"{name} ({sum(rows.sizes.values())} rows of {len(rows.sizes)} sources)",
        "tokens_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "sizes": rows.sizes,
        "big": sorted(set(rows.sources)),
    }
    path = out / "about.json"
    if path.exists():
        begun = json.loads(path.read_text(encoding="utf-8"))
        if begun["tokens_sha256"] != about["tokens_sha256"]:
            sys.exit(f"{out} was started with other data ({begun['data']}); choose another --out, or remove it.")
        return
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="JSON lines with source and text columns; default: the demo's mixture")
    parser.add_argument("--out", type=Path, default=Path("runs/fidelity"))
    parser.add_argument("--pools", type=int, default=20, help="number of pools per stage")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    rows = load_rows(arguments.data, load_tokenizer("demo"))
    describe_run(out, arguments.data, rows)
    model = build_model()
    if not (out / f"steps-{max(STAGES)}.pt").exists():
        train(model, rows, out)
    # Pools come from the end of the order, which training does not reach.
    order = torch.randperm(len(rows.tokens), generator=torch.Generator().manual_seed(SEED)).tolist()[::-1]
    for number in range(arguments.pools):  # stages in turn, so that an interrupted run has all three
        for stage in STAGES:
            path = out / f"pool-{stage}-{number}.pt"
            if path.exists():
                continue
            start = time.perf_counter()
            set_peft_model_state_dict(model, torch.load(out / f"adapter-{stage}.pt"))
            positions = order[number * POOL : (number + 1) * POOL]
            measured = measure_pool(model, rows, positions, differences=number == 0)
            unfinished = path.with_suffix(".part")
            torch.save(measured, unfinished)
            os.replace(unfinished, path)
            print(f"pool {number} stage {stage} {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
