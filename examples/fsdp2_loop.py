"""CoresetSelector in a plain FSDP2 loop that resumes: torchrun --nproc_per_node 8 examples/fsdp2_loop.py --steps 15"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler
from transformers import DataCollatorForSeq2Seq

from colm import CoresetSelector, example_mean
from colm.lab.data.demo import demo_rows
from colm.lab.data.formats import Rendering
from colm.lab.data.tokenize import tokenize_rows
from colm.models import build_tiny_model, train_tiny_tokenizer
from colm.step.sources import count_sources

POOL, MICRO_BATCH = 32, 4  # rows over all processes, and of one micro-batch
STATE = ("model_state_dict", "optim_state_dict")


def main(steps: int, out: Path) -> None:
    dist.init_process_group()
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    text = demo_rows(600, seed=0)  # your data: any rows with a source
    tokenizer = train_tiny_tokenizer(text["prompt"])
    data = tokenize_rows([text], tokenizer, format_name="auto", rendering=Rendering(192), source_column="source")
    data = data.add_column("row", range(len(data)))
    pad = DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100)

    def collate(rows: list[dict]) -> dict:
        tokens = pad([{key: row[key] for key in ("input_ids", "attention_mask", "labels")} for row in rows])
        return {**tokens, "source": [row["source"] for row in rows], "row": [row["row"] for row in rows]}

    torch.manual_seed(0)
    model = build_tiny_model(tokenizer).to(device)  # your model
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    selector = CoresetSelector(model, source_sizes=count_sources(data["source"]), optimizer=optimizer)
    done = 0
    if (out / "selector.pt").exists():
        state = dict(zip(STATE, get_state_dict(model, optimizer), strict=True))
        dcp.load(state, checkpoint_id=out / "weights")
        set_state_dict(model, optimizer, **state)
        selector.load_state_dict(torch.load(out / "selector.pt", weights_only=True))  # the same on every rank
        done = selector.state.step
    order = DistributedSampler(data, world, rank, seed=0, drop_last=True)
    batches = iter(DataLoader(data, MICRO_BATCH, sampler=order, drop_last=True, collate_fn=collate))
    for step in range(steps):
        micro_batches = [next(batches) for _ in range(POOL // (MICRO_BATCH * world))]
        if step < done:
            continue
        sources = [name for batch in micro_batches for name in batch.pop("source")]
        rows = [row for batch in micro_batches for row in batch.pop("row")]
        micro_batches = [{key: value.to(device) for key, value in batch.items()} for batch in micro_batches]
        coreset = selector.select(micro_batches, sources, dataset_index=rows)
        loss = torch.zeros((), device=device)
        for batch in selector.take(micro_batches, coreset):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            part = example_mean(logits, batch["labels"], num_examples=len(coreset.indices))
            (part * world).backward()  # ranks average gradients; this makes it a sum
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad()
        record = selector.commit()
        dist.all_reduce(loss)
        if rank == 0:
            print(f"step {step}: loss {loss:.4f}, kept {record.kept_count} of {record.pool_count}")
    if rank == 0:
        (out / "selector.pt").unlink(missing_ok=True)
    dist.barrier()
    dcp.save(dict(zip(STATE, get_state_dict(model, optimizer), strict=True)), checkpoint_id=out / "weights")
    if rank == 0:
        torch.save(selector.state_dict(), out / "selector.pt")  # last: it says that the checkpoint is complete


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("runs/fsdp2_loop"))
    main(**vars(parser.parse_args()))
    dist.destroy_process_group()
