"""Which ways to make the selection pass cheaper are worth it? Judged by quality per second of the pass.

    python benchmarks/cheaper.py tiny         # the experiments' model on the reasoning mixture, trained in full
    python benchmarks/cheaper.py smollm2      # SmolLM2-135M on the same rows, with LoRA

Quality is the cosine between the mean gradients of the kept rows and of their pool, over all trained weights, minus the
control's (the same number of rows per source at random). Half of each pool is kept. Rows are matched (`preset: matched`
without the small-source rule), since medoids gain nothing over the control. Seconds are process time of `select` on one
thread. Figures are stored in docs/results/cheaper.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "experiments"))
sys.path.insert(0, str(Path(__file__).parent))
from peft import LoraConfig, get_peft_model
from setting import describe_setting
from variance_gather import Gathering, make_pool

from colm import CoresetSelector, SelectionConfig, example_mean
from colm.lab.data.formats import Rendering
from colm.lab.data.read import read_rows
from colm.lab.data.tokenize import tokenize_rows
from colm.lab.intervals import estimate_mean
from colm.lab.run.settings import load_settings
from colm.models import load_model, load_tokenizer
from colm.step.sources import count_sources

REASONING = Path(__file__).parent / "experiments" / "reasoning.yaml"
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "cheaper.json"
MATCHED = SelectionConfig.from_dict({"preset": "matched", "small_sources": "none", "keep": 0.5})
STALE = 60
"""Age in steps of a cached feature."""

Rows = list[dict[str, torch.Tensor]]
Select = Callable[[Rows, list[str]], tuple[torch.Tensor, torch.Tensor]]


class Bench:
    """A model, its rows, and pools of them."""

    def __init__(self, kind: str, pool: int) -> None:
        self.pool_size = pool
        self.micro_batch = 16 if kind == "tiny" else 4
        self.earlier: Any = None
        if kind == "tiny":
            gathering = Gathering("reasoning")
            self.earlier = copy.deepcopy(gathering.model)
            for step in range(STALE):  # as in the experiments
                gathering.train(step)
            self.model, self.tokens, self.sources = gathering.model, gathering.tokens, gathering.sources
        else:
            base = load_model("demo", dtype="float32")
            self.model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear"))
            tokens = tokenize_rows(
                [read_rows(load_settings(str(REASONING), []).data.train)],
                load_tokenizer("demo"),
                format_name="auto",
                rendering=Rendering(512),
                source_column="source",
            )
            self.tokens, self.sources = tokens.to_list(), list(tokens["source"])
        self.order = list(range(len(self.tokens)))
        random.Random(0).shuffle(self.order)
        self.sizes = count_sources(self.sources, "source")
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.model.eval()

    def rows(self, number: int) -> tuple[Rows, list[str]]:
        """Return a pool's micro-batches and its rows' sources."""
        places = self.order[number * self.pool_size : (number + 1) * self.pool_size]
        pool = make_pool(self.tokens, places)
        batches = [
            pool.collate(list(range(start, min(start + self.micro_batch, len(places)))))
            for start in range(0, len(places), self.micro_batch)
        ]
        return batches, [self.sources[p] for p in places]

    def gradients(self, batches: Rows) -> torch.Tensor:
        """Return each row's gradient over the trained weights, (n, D)."""
        found = []
        for batch in batches:
            for row in range(len(batch["labels"])):
                used = int(batch["attention_mask"][row].sum())
                ids, labels = (batch[key][row : row + 1, :used] for key in ("input_ids", "labels"))
                logits = self.model(input_ids=ids).logits
                example_mean(logits, labels, num_examples=1).backward()
                found.append(torch.cat([weight.grad.flatten() for weight in self.weights]))
                self.model.zero_grad()
        return torch.stack(found)

    def select(self, config: SelectionConfig = MATCHED, model: Any = None) -> Select:
        """Return a selection with its own memory."""
        selector = CoresetSelector(model if model is not None else self.model, config, self.sizes)

        def run(batches: Rows, sources: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            coreset = selector.select(batches, sources)
            selector.commit()
            return coreset.indices, coreset.weights

        return run


@contextmanager
def layers_left_out(model: Any, every: int) -> Iterator[None]:
    """Within the block, every `every`-th layer passes on its input, except the first and the last layers."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = list(inner.model.layers)
    for layer in layers[1 : len(layers) - 1 : every]:
        layer.forward = lambda hidden, *args, **kwargs: hidden
    try:
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def smaller_pool(select: Select, share: float) -> Select:
    """Select the same number of rows, but only among the first rows of the pool."""

    def run(batches: Rows, sources: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return select(batches[: math.ceil(share * len(batches))], sources[: math.ceil(share * len(sources))])

    return run


def variants(bench: Bench) -> dict[str, tuple[Select, Callable[[], Any]]]:
    """Return each way's selection and the context that it runs in."""
    fixed = replace(MATCHED, keep=None, keep_count=bench.pool_size // 2)

    # Of four layers, one of four between the first and the last would be the same as one of two.
    more = {"one of 4 layers left out": (bench.select(), lambda: layers_left_out(bench.model, 4))}
    more = {} if bench.earlier is not None else more
    found: dict[str, tuple[Select, Callable[[], Any]]] = {
        "control": (bench.select(SelectionConfig(features="none", small_sources="none", keep=0.5)), nullcontext),
        "exact": (bench.select(), nullcontext),
        "one of 2 layers left out": (bench.select(), lambda: layers_left_out(bench.model, 2)),
        **more,
        "pass_dtype=bfloat16": (bench.select(replace(MATCHED, pass_dtype="bfloat16")), nullcontext),
        "pass_labels=16": (bench.select(replace(MATCHED, pass_labels=16)), nullcontext),
        "pass_labels=4": (bench.select(replace(MATCHED, pass_labels=4)), nullcontext),
        "three quarters of the pool": (smaller_pool(bench.select(fixed), 0.75), nullcontext),
    }
    if bench.earlier is not None:
        found[f"features of {STALE} steps ago"] = (bench.select(model=bench.earlier.eval()), nullcontext)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=("tiny", "smollm2"))
    parser.add_argument("--pools", type=int, default=20)
    parser.add_argument("--pool", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.model, args.pool)
    ways = variants(bench)
    cosines: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(args.pools):
        batches, sources = bench.rows(number)
        gradients = bench.gradients(batches)
        pool = gradients.mean(0)
        for name, (select, context) in ways.items():
            start = time.process_time()
            with context():
                indices, weights = select(batches, sources)
            seconds[name].append(time.process_time() - start)
            kept = weights @ gradients[indices]
            cosines[name].append(float(torch.cosine_similarity(kept, pool, 0)))
        held = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        held[args.model] = {
            "setting": describe_setting("0"),
            "pools": number + 1,
            "pool": args.pool,
            "cosines": cosines,
            "seconds": seconds,
        }
        RESULTS.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
        print(number, {name: round(values[-1], 4) for name, values in cosines.items()}, flush=True)
    print(table(held[args.model]))


def table(found: dict[str, Any]) -> str:
    """Return the figures of a model as a Markdown table."""
    lines = [
        "| way | cosine | over the control, paired, ± 95 % | seconds, of exact's | gain a second, of exact's |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    exact = None
    for name, values in found["cosines"].items():
        gains = [a - b for a, b in zip(values, found["cosines"]["control"], strict=True)]
        gain, half, pools = estimate_mean(gains) or (0.0, None, 0)
        cost = sum(found["seconds"][name]) / sum(found["seconds"]["exact"])
        rate = gain / cost if cost else 0.0
        exact = rate if name == "exact" else exact
        shown = f"{rate / exact:.2f}" if exact and name != "control" else "-"
        lines.append(f"| {name} | {sum(values) / pools:.3f} | {gain:+.3f} ± {half or 0.0:.3f} | {cost:.2f} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
