"""How much computation is padding on the demo's mixture, with rows in their original order and grouped by length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq

from colm import CoresetSelector, SelectionConfig
from colm.lab.run.prepare import prepare_data
from colm.lab.run.settings import load_settings
from colm.step.pool import Pool

DEMO = Path(__file__).parents[1] / "examples" / "demo.yaml"


def padding_shares(pools: int = 20) -> dict[str, float]:
    """Return the shares of padding in the pool and in its coreset, before and after rows are grouped by length.

    Pools are drawn like the demo's trainer does; rows of large sources are kept at random, with the same quotas as
    medoids, so no model is needed.
    """
    settings = load_settings(str(DEMO), [])
    data = prepare_data(settings)
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


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("input_ids", "attention_mask", "labels")}


if __name__ == "__main__":
    print({name: round(share, 4) for name, share in padding_shares().items()})
