"""CoresetSelector with accelerate, on any number of processes: accelerate launch examples/accelerate_loop.py"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq

from colm import CoresetSelector, SelectionConfig, example_mean
from colm.lab.data.demo import demo_rows
from colm.lab.data.formats import Rendering
from colm.lab.data.tokenize import tokenize_rows
from colm.models import build_tiny_model, train_tiny_tokenizer
from colm.step.sources import count_sources

POOL, MICRO_BATCH = 32, 4  # rows over all processes, and of one micro-batch


def main(steps: int, cpu: bool = False) -> list[float]:
    # One seed for the row order, so that the pools are the same on any number of processes.
    loading = DataLoaderConfiguration(use_seedable_sampler=True, data_seed=0)
    accelerator = Accelerator(cpu=cpu, dataloader_config=loading)
    text = demo_rows(600, seed=0)  # your data: any rows with a source
    tokenizer = train_tiny_tokenizer(text["prompt"])
    data = tokenize_rows([text], tokenizer, format_name="auto", rendering=Rendering(192), source_column="source")
    names = sorted(set(data["source"]))
    pad = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)

    def collate(rows: list[dict]) -> dict:
        tokens = pad([{key: row[key] for key in ("input_ids", "attention_mask", "labels")} for row in rows])
        # Integers, because accelerate moves tensors between processes and devices, but not text.
        codes = torch.tensor([names.index(row["source"]) for row in rows])
        return {**tokens, "source": codes, "row": torch.tensor([row["row"] for row in rows])}

    data = data.add_column("row", range(len(data)))
    torch.manual_seed(0)
    model = build_tiny_model(tokenizer)  # your model
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loader = DataLoader(data, MICRO_BATCH, shuffle=True, drop_last=True, collate_fn=collate)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    selector = CoresetSelector(
        model, SelectionConfig(keep=0.5), source_sizes=count_sources(data["source"]), optimizer=optimizer
    )
    model.train()
    batches, losses = iter(loader), []
    accumulation = POOL // (MICRO_BATCH * accelerator.num_processes)
    for step in range(steps):
        micro_batches = [dict(next(batches)) for _ in range(accumulation)]
        sources = [names[code] for batch in micro_batches for code in batch.pop("source").tolist()]
        rows = [row for batch in micro_batches for row in batch.pop("row").tolist()]
        coreset = selector.select(micro_batches, sources, dataset_index=rows)
        kept = selector.take(micro_batches, coreset)
        total = torch.zeros((), device=accelerator.device)
        for number, batch in enumerate(kept):
            # Processes average gradients once, after the last micro-batch; scaling the loss makes it a sum.
            with nullcontext() if number == len(kept) - 1 else accelerator.no_sync(model):
                logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                part = example_mean(logits, batch["labels"], num_examples=len(coreset.indices))
                accelerator.backward(part * accelerator.num_processes)
            total += part.detach()
        optimizer.step()
        optimizer.zero_grad()
        record = selector.commit(stepped=not accelerator.optimizer_step_was_skipped)
        losses.append(float(accelerator.reduce(total)))
        accelerator.print(f"step {step}: loss {losses[-1]:.4f}, kept {record.kept_count} of {record.pool_count}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--cpu", action="store_true")
    options = parser.parse_args()
    main(options.steps, options.cpu)
    PartialState().destroy_process_group()  # otherwise gloo's threads can abort Python on exit
