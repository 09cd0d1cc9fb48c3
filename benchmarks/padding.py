"""How much computation is padding, and how much longer the slowest of eight ranks computes.

On the demo's mixture, with rows in their original order and grouped by length; then of kept rows in four micro-batches,
equally many in each or with the fewest padded tokens, also for lengths with a long tail.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForSeq2Seq

from colm import CoresetSelector, SelectionConfig
from colm.lab.run.prepare import prepare_data
from colm.lab.run.settings import load_settings
from colm.step.balance import deal_rows, split_evenly, split_joined, split_padded
from colm.step.pool import Pool

DEMO = Path(__file__).parents[1] / "examples" / "demo.yaml"


STEPS, SLOTS, RANKS = 500, 4, 8


@cache
def demo() -> tuple[Any, Any]:
    """Return the demo's settings and data."""
    settings = load_settings(str(DEMO), [])
    return settings, prepare_data(settings)


def padding_shares(pools: int = 20) -> dict[str, float]:
    """Return the shares of padding in the pool and in its coreset, before and after rows are grouped by length.

    Pools are drawn like the demo's trainer does; rows of large sources are kept at random, with the same quotas as
    medoids, so no model is needed.
    """
    settings, data = demo()
    training = settings.training
    size, slots = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
    sources = [str(name) for name in data.train[settings.data.source_column]]
    sizes = {name: sources.count(name) for name in set(sources)}
    collator = DataCollatorForSeq2Seq(data.tokenizer, padding=True, label_pad_token_id=-100)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0)).tolist()
    config = SelectionConfig(keep=settings.selection.keep, features="none")
    selector = CoresetSelector(torch.nn.Linear(1, 1), config, sizes)
    counts = {name: [0, 0] for name in ("pool_before", "pool_after", "kept_before", "kept_after")}

    def note(name: str, batch: Any) -> None:
        counts[name][0] += batch["input_ids"].numel()
        counts[name][1] += int(batch["attention_mask"].sum())

    for start in range(0, pools * size * slots, size * slots):
        rows = order[start : start + size * slots]
        if len(rows) < size * slots:
            break
        batches = [
            dict(collator([_row(data.train[i]) for i in rows[at : at + size]])) for at in range(0, len(rows), size)
        ]
        names = [sources[i] for i in rows]
        pool = Pool(batches)
        for batch in batches:
            note("pool_before", batch)
        big = [p for p, name in enumerate(names) if name not in selector.small]
        for group in pool.group(big, pool.largest_batch_tokens()):
            note("pool_after", pool.collate(group))
        coreset = selector.select(batches, names)
        kept = coreset.indices.tolist()
        for at in range(0, len(kept), -(-len(kept) // slots)):
            note("kept_before", pool.collate(kept[at : at + -(-len(kept) // slots)]))
        for batch in selector.take(batches, coreset):
            note("kept_after", batch)
        selector.commit()
    shares = {name: 1 - used / padded for name, (padded, used) in counts.items()}
    for when in ("before", "after"):
        padded, used = (counts[f"pool_{when}"][i] + counts[f"kept_{when}"][i] for i in (0, 1))
        shares[when] = 1 - used / padded
    return shares


def measure(lengths: np.ndarray, labelled: np.ndarray, rows: int) -> dict[str, float]:
    """Return the padding of a rank's kept rows, and the slowest rank's tokens over the mean, before and after.

    Padding is a share of all padded tokens. Joined rows have none: their figures are tokens of the fullest micro-batch
    over the mean.

    Args:
        lengths: (n,) tokens of the data's rows.
        labelled: (n,) labeled tokens.
        rows: kept rows of each rank.
    """
    draw = np.random.default_rng(0)
    real = 0
    found = dict.fromkeys(("equal rows", "fewest tokens"), 0)
    fullest, ranks = [], {"contiguous": [], "swapped": []}
    sent = 0
    for _ in range(STEPS):
        drawn = draw.integers(0, len(lengths), rows * RANKS)
        held, told = lengths[drawn].tolist(), labelled[drawn].tolist()
        everything = range(rows * RANKS)
        dealt = {"contiguous": split_evenly(everything, RANKS), "swapped": deal_rows(everything, RANKS, held)}
        before = [set(run) for run in dealt["contiguous"]]
        sent += sum(len(set(run) - was) for run, was in zip(dealt["swapped"], before, strict=True))
        for name, runs in dealt.items():
            loads = []
            for run in runs:
                ordered = sorted(run, key=lambda p: -held[p])
                cut = split_evenly(ordered, SLOTS) if name == "contiguous" else split_padded(ordered, SLOTS, held, told)
                loads.append(sum(len(part) * held[part[0]] for part in cut))
            ranks[name].append(max(loads) / np.mean(loads))
        ordered = sorted(range(rows), key=lambda p: -held[p])
        real += sum(held[p] for p in ordered)
        for name, cut in (
            ("equal rows", split_evenly(ordered, SLOTS)),
            ("fewest tokens", split_padded(ordered, SLOTS, held, told)),
        ):
            found[name] += sum(len(part) * held[part[0]] for part in cut)
        tokens = [sum(held[p] for p in part) for part in split_joined(ordered, SLOTS, held)]
        fullest.append(max(tokens) / np.mean(tokens))
    return (
        {f"padding, {name}": 1 - real / padded for name, padded in found.items()}
        | {"tokens saved": 1 - found["fewest tokens"] / found["equal rows"]}
        | {"fullest joined micro-batch": float(np.mean(fullest))}
        | {f"slowest rank, {name}": float(np.mean(over)) for name, over in ranks.items()}
        | {"rows sent by swaps": sent / STEPS / (rows * RANKS)}
    )


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("input_ids", "attention_mask", "labels")}


def main() -> None:
    """Print the figures."""
    print({name: round(share, 4) for name, share in padding_shares().items()})
    _, data = demo()
    labels = data.train["labels"]
    tail = np.random.default_rng(0).lognormal(5, 0.8, 100_000).clip(8, 4096).astype(int)
    lengths = {
        "demo": (
            np.array([len(row) for row in labels]),
            np.array([sum(label != -100 for label in row) for row in labels]),
        ),
        "long tail": (tail, tail // 2),
    }
    for name, (tokens, labelled) in lengths.items():
        for rows in (16, 32):
            figures = {key: round(value, 3) for key, value in measure(tokens, labelled, rows).items()}
            print(f"{name}, {rows} rows in {SLOTS} micro-batches, {RANKS} ranks:", figures)


if __name__ == "__main__":
    main()
