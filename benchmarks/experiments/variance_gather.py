"""Gather the data for `variance.py`: gradients over all weights for the rows of many pools, at stages of training."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colm import example_mean
from colm.features.adam import AdamConstants, to_adam_steps
from colm.features.locate import locate_value_site
from colm.features.shorten import draw_sketch, largest_coordinates
from colm.lab.data.read import read_rows
from colm.lab.data.tokenize import tokenize_rows
from colm.lab.run.settings import load_settings
from colm.losses import example_losses
from colm.models import load_model, load_tokenizer
from colm.step.pool import Pool
from colm.step.sources import count_sources, find_small_sources
from colm.types import AdamHistory

STAGES = (0, 30, 120)
STEPS, BATCH, MICRO_BATCH, WARM_UP = 150, 32, 16, 5
POOLS, POOL, POPULATION, SEED = 30, 64, 2048, 0
SKETCH = 2**14
"""Coordinates that represent the full gradient; inner products are within 1 % of the product of lengths."""

COORDINATES = 2560


class PoolRows(NamedTuple):
    """The data of a pool of large sources' rows."""

    sources: list[str]
    losses: Tensor  # (n,)
    last: Tensor  # (n, h) sketched last-V gradients
    scaled: Tensor  # (n, h) the same in Adam's metric
    cut: Tensor  # (n, h) last-V gradients at the coordinates where the pool's mean is largest
    norms: Tensor  # (n,) of the last-V gradients
    largest: Tensor  # (n, h) last-V gradients as Adam steps at each source's own coordinates; 0 elsewhere
    full: Tensor  # (n, SKETCH) sketched gradients over all weights, scaled as Adam scales them


def make_pool(tokens: Sequence[Mapping[str, list[int]]], positions: Sequence[int]) -> Pool:
    """Return tokenized rows as a pool, one row per micro-batch."""
    keys = ("input_ids", "attention_mask", "labels")
    return Pool([{key: torch.tensor([tokens[p][key]]) for key in keys} for p in positions])


class Gathering:
    """The experiment's model and rows, and their gradients."""

    def __init__(self, mixture: str) -> None:
        base = load_settings(str(Path(__file__).parent / f"{mixture}.yaml"), [])
        self.model: Any = load_model(base.model, dtype="float32")
        rows = read_rows(base.data.train)
        sizes = count_sources(rows["source"], "source")
        small = find_small_sources(sizes, "auto")
        tokens = tokenize_rows(
            [rows],
            load_tokenizer(base.model),
            format_name="auto",
            max_length=base.data.max_length,
            source_column="source",
        )
        self.tokens, self.sources = tokens.to_list(), list(tokens["source"])
        order = list(range(len(self.tokens)))
        random.Random(SEED).shuffle(order)
        self.order = order
        self.big = [p for p in order if self.sources[p] not in small]
        self.rate = base.training["learning_rate"]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.rate, weight_decay=0.0)
        self.weights = list(self.model.parameters())
        self.site = locate_value_site(self.model)
        self.place = next(i for i, weight in enumerate(self.weights) if weight is self.site.weight)
        self.first = sum(weight.numel() for weight in self.weights[: self.place])  # of its entries among all

    def pool(self, positions: list[int]) -> Pool:
        return make_pool(self.tokens, positions)

    def train(self, step: int) -> None:
        share = min((step + 1) / WARM_UP, (STEPS - step) / (STEPS - WARM_UP))
        self.optimizer.param_groups[0]["lr"] = self.rate * share
        pool = self.pool(self.order[step * BATCH : (step + 1) * BATCH])
        for start in range(0, BATCH, MICRO_BATCH):
            batch = pool.collate(list(range(start, start + MICRO_BATCH)))
            labels = batch.pop("labels")
            example_mean(self.model(**batch).logits, labels, num_examples=BATCH).backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self, pool: Pool, rows: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows' losses, and the gradients of their sum: all weights, and the last value projection's."""
        batch = pool.collate(rows)
        labels = batch.pop("labels")
        losses = example_losses(self.model(**batch).logits, labels)
        found = torch.autograd.grad(losses.sum(), self.weights)
        return losses.detach(), torch.cat([part.flatten() for part in found]), found[self.place].flatten()

    def measure(self, step: int) -> dict[str, Any]:
        self.model.eval()
        scale = self.adam_scale()
        sketch = draw_sketch(sum(weight.numel() for weight in self.weights), SKETCH, torch.device("cpu"))
        short = draw_sketch(self.site.dim, COORDINATES, torch.device("cpu"))
        assert sketch is not None
        assert short is not None
        away = self.big[::-1]  # rows that training does not reach
        whole = torch.zeros(SKETCH)
        for start in range(0, POPULATION, MICRO_BATCH):
            pool = self.pool(away[POOLS * POOL + start : POOLS * POOL + start + MICRO_BATCH])
            whole += sketch.apply((self.gradients(pool, list(range(len(pool))))[1] * scale)[None])[0]
        pools = []
        for number in range(POOLS):
            positions = away[number * POOL : (number + 1) * POOL]
            pool = self.pool(positions)
            losses, last = torch.zeros(POOL), torch.zeros(POOL, self.site.dim)
            full = torch.zeros(POOL, SKETCH)
            for row in range(POOL):
                loss, gradient, last[row] = self.gradients(pool, [row])
                losses[row], full[row] = loss[0], sketch.apply((gradient * scale)[None])[0]
            sources = [self.sources[p] for p in positions]
            steps = self.adam_steps(last, step, sources)
            cut = last[:, largest_coordinates(last.mean(0), COORDINATES)]
            scaled = short.apply(last * scale[self.first : self.first + self.site.dim])
            pools.append(PoolRows(sources, losses, short.apply(last), scaled, cut, last.norm(dim=1), steps, full))
        self.model.train()
        return {"population": whole / POPULATION, "pools": [pool._asdict() for pool in pools]}

    def adam_scale(self) -> Tensor:
        """Return the square root of Adam's 1 / (sqrt(v) + eps), for lengths in Adam's metric; 1 at first."""
        if not self.optimizer.state:
            return torch.ones(sum(weight.numel() for weight in self.weights))
        states = [self.optimizer.state[weight] for weight in self.weights]
        step = float(states[0]["step"])
        v = torch.cat([state["exp_avg_sq"].flatten() for state in states]) / (1 - 0.999**step)
        # A weight that rarely has a gradient (that of a rare token) would dominate.
        return (1 / (v.sqrt() + v.sqrt().mean() * 1e-2)).sqrt()

    def adam_steps(self, last: Tensor, step: int, sources: list[str]) -> Tensor:
        """Return the paper's features: Adam steps, each source's largest coordinates, 0 elsewhere, shortened."""
        state = self.optimizer.state.get(self.site.weight)
        if state:
            history = AdamHistory(state["exp_avg"].flatten(), state["exp_avg_sq"].flatten(), step)
        else:
            history = AdamHistory(torch.zeros(self.site.dim), torch.zeros(self.site.dim), 0)
        steps = to_adam_steps(last.clone(), history, AdamConstants(0.9, 0.999, 1e-8))
        found = torch.zeros(len(last), COORDINATES)
        for source in set(sources):
            rows = torch.tensor([i for i, name in enumerate(sources) if name == source])
            found[rows] = steps[rows][:, largest_coordinates(steps[rows].mean(0), COORDINATES)]
        return found


def gather(mixture: str, folder: Path) -> None:
    paths = {step: folder / f"stage-{step}.pt" for step in STAGES}
    if all(path.exists() for path in paths.values()):
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    gathering = Gathering(mixture)
    for step in range(max(STAGES) + 1):
        if step in STAGES:
            measured = gathering.measure(step)
            torch.save(measured, paths[step].with_suffix(".part"))
            paths[step].with_suffix(".part").rename(paths[step])
            print(f"stage {step}", flush=True)
        gathering.train(step)
