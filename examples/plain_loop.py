"""CoresetSelector in a plain PyTorch loop that resumes after a kill: python examples/plain_loop.py --steps 20"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq

from colm import CoresetSelector, SelectionConfig, example_mean
from colm.lab.data.demo import demo_rows
from colm.lab.data.formats import Rendering
from colm.lab.data.tokenize import tokenize_rows
from colm.models import build_tiny_model, train_tiny_tokenizer
from colm.step.sources import count_sources

MICRO_BATCH, ACCUMULATION = 8, 4


def main(steps: int, out: Path) -> float:
    text = demo_rows(600, seed=0)  # your data: any rows with a source
    tokenizer = train_tiny_tokenizer(text["prompt"])
    data = tokenize_rows([text], tokenizer, format_name="auto", rendering=Rendering(192), source_column="source")
    pad = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)

    def collate(rows: list[dict]) -> dict:
        tokens = pad([{key: row[key] for key in ("input_ids", "attention_mask", "labels")} for row in rows])
        return {**tokens, "source": [row["source"] for row in rows], "row": [row["row"] for row in rows]}

    data = data.add_column("row", range(len(data)))
    torch.manual_seed(0)
    model = build_tiny_model(tokenizer)  # your model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    selector = CoresetSelector(
        model, SelectionConfig(keep=0.5), source_sizes=count_sources(data["source"]), optimizer=optimizer
    )
    checkpoint, done = out / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        selector.load_state_dict(state["selector"])
        done = state["selector"]["step"]
    model.train()
    loss = torch.zeros(())
    order = torch.Generator().manual_seed(0)  # the same pools after a resume
    batches = iter(DataLoader(data, MICRO_BATCH, shuffle=True, generator=order, drop_last=True, collate_fn=collate))
    for step in range(steps):
        micro_batches = [next(batches) for _ in range(ACCUMULATION)]
        if step < done:
            continue
        sources = [name for batch in micro_batches for name in batch.pop("source")]
        rows = [row for batch in micro_batches for row in batch.pop("row")]
        coreset = selector.select(micro_batches, sources, dataset_index=rows)
        loss = torch.zeros(())
        for batch in selector.take(micro_batches, coreset):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            part = example_mean(logits, batch["labels"], num_examples=len(coreset.indices))
            part.backward()
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad()
        record = selector.commit()
        print(f"step {step}: loss {loss:.4f}, kept {record.kept_count} of {record.pool_count}")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "selector": selector.state_dict()}
        torch.save(state, out / "partial.pt")
        os.replace(out / "partial.pt", checkpoint)  # atomic: complete or not at all
    return float(loss)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("runs/plain_loop"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    main(options.steps, options.out)
