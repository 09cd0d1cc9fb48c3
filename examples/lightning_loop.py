"""CoresetSelector in Lightning, on one device or in DDP, with its checkpoints: python examples/lightning_loop.py"""

from __future__ import annotations

import argparse
from contextlib import nullcontext

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq

from colm import CoresetSelector, SelectionConfig, example_mean
from colm.lab.data.demo import demo_rows
from colm.lab.data.formats import Rendering
from colm.lab.data.tokenize import tokenize_rows
from colm.models import build_tiny_model, train_tiny_tokenizer
from colm.step.ranks import leave_ranks
from colm.step.sources import count_sources


class CoresetModule(pl.LightningModule):
    def __init__(self, selector: CoresetSelector, pools: zip, sources: list[str]) -> None:
        super().__init__()
        self.automatic_optimization = False  # a step has several backward passes
        self.model, self.selector, self.pools, self.sources, self.losses = selector.model, selector, pools, sources, []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self.selector.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3)
        return self.selector.optimizer

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["selector"] = self.selector.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.selector.load_state_dict(checkpoint["selector"])
        for _ in range(checkpoint["selector"]["step"]):
            next(self.pools)  # Lightning does not skip the batches already used

    def training_step(self, pool: tuple[dict, ...]) -> None:
        batches = pool[self.global_rank :: self.trainer.world_size]  # this process's share
        rows = [row for batch in batches for row in batch["row"].tolist()]
        coreset = self.selector.select(batches, [self.sources[row] for row in rows], dataset_index=rows)
        kept, loss = self.selector.take(batches, coreset), torch.zeros((), device=self.device)
        for number, batch in enumerate(kept, 1):
            with nullcontext() if number == len(kept) or self.trainer.world_size == 1 else self.trainer.model.no_sync():
                logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                part = example_mean(logits, batch["labels"], num_examples=len(coreset.indices))
                self.manual_backward(part * self.trainer.world_size)  # processes average their gradients
            loss += part.detach()
        self.optimizers().step()
        self.optimizers().zero_grad()
        record = self.selector.commit()
        self.losses.append(float(self.trainer.strategy.reduce(loss, reduce_op="sum")))
        self.print(f"step {record.step}: loss {self.losses[-1]:.4f}, kept {record.kept_count} of {record.pool_count}")


def main(steps: int, out: str) -> list[float]:
    text = demo_rows(600, seed=0)  # your data: any rows with a source
    tokenizer = train_tiny_tokenizer(text["prompt"])
    data = tokenize_rows([text], tokenizer, format_name="auto", rendering=Rendering(192), source_column="source")
    sources, rows = list(data["source"]), data.remove_columns("source").add_column("row", range(len(data)))
    order = torch.Generator().manual_seed(0)  # the same pools on every process and after a resume
    batches = iter(DataLoader(rows, 8, shuffle=True, generator=order, collate_fn=DataCollatorForSeq2Seq(tokenizer)))
    torch.manual_seed(0)
    model = build_tiny_model(tokenizer).train()  # your model
    selector = CoresetSelector(model, SelectionConfig(keep=0.5), source_sizes=count_sources(sources))
    module = CoresetModule(selector, zip(*[batches] * 4, strict=False), sources)  # pools of 4 micro-batches
    saving = pl.callbacks.ModelCheckpoint(out, every_n_train_steps=1, save_top_k=0, save_last=True)
    trainer = pl.Trainer(max_epochs=1, max_steps=steps, logger=False, enable_progress_bar=False, callbacks=[saving])
    trainer.fit(module, module.pools, ckpt_path="last")  # the warning about saving is expected
    return module.losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--out", default="runs/lightning_loop")
    main(**vars(parser.parse_args()))
    leave_ranks()  # otherwise gloo's threads can abort Python on exit
