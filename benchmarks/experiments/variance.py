"""How far is the gradient of the kept rows from that of all data, and is it by variance or by bias?

    python benchmarks/experiments/variance.py reasoning

Trains the experiment's model on random batches, and at three stages takes the gradients over *all* weights of the rows
of many pools of big sources, one backward a row. Every rule picks half of a pool by what the selection pass knows.
Writes docs/results/variance_<mixture>.md and .json; what is gathered is kept in runs/experiments/<mixture>/variance.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from setting import describe_setting

from colm import example_mean
from colm.batch import Pool
from colm.cli.settings import load_settings
from colm.data.load import read_rows, tokenize_rows
from colm.features.adam import AdamConstants, adam_step
from colm.features.locate import locate_value_site
from colm.features.sketch import draw_sketch
from colm.features.sparsify import largest_coordinates
from colm.losses import example_losses
from colm.models import load_model, load_tokenizer
from colm.select.baselines import largest_rows
from colm.select.direction import match_direction
from colm.select.facility import facility_location
from colm.select.fitting import fit_weights
from colm.select.quota import source_quotas
from colm.select.sampling import sample_by_size
from colm.sources import count_sources, find_small_sources
from colm.types import AdamHistory

STAGES = (0, 30, 120)
STEPS, BATCH, MICRO_BATCH, WARM_UP = 150, 32, 16, 5
POOLS, POOL, POPULATION, SEED = 30, 64, 2048, 0
SKETCH = 2**14
"""Coordinates that stand for the full gradient; inner products are within 1 % of the product of lengths."""

COORDINATES = 2560
DRAWS = 5
RESULTS = Path(__file__).parents[2] / "docs" / "results"


class PoolRows(NamedTuple):
    """What is known of a pool of big sources' rows."""

    sources: list[str]
    losses: Tensor  # (n,)
    last: Tensor  # (n, h) sketched last-V gradients
    norms: Tensor  # (n,) of the last-V gradients
    largest: Tensor  # (n, h) last-V gradients as Adam steps at each source's own coordinates; 0 elsewhere
    full: Tensor  # (n, SKETCH) sketched gradients over all weights, scaled as Adam scales them


class Gathering:
    """The experiment's model and rows, and their gradients."""

    def __init__(self, mixture: str) -> None:
        base = load_settings(str(Path(__file__).parent / f"{mixture}.yaml"), [])
        self.model: Any = load_model(base.model, dtype="float32")
        rows = read_rows(base.data["train"])
        sizes = count_sources(rows["source"], "source")
        small = find_small_sources(sizes, "auto")
        tokens = tokenize_rows(
            [rows],
            load_tokenizer(base.model),
            format_name="auto",
            max_length=base.data["max_length"],
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

    def pool(self, positions: list[int]) -> Pool:
        keys = ("input_ids", "attention_mask", "labels")
        return Pool([{key: torch.tensor([self.tokens[p][key]]) for key in keys} for p in positions])

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
        site = next(i for i, weight in enumerate(self.weights) if weight is self.site.weight)
        return losses.detach(), torch.cat([part.flatten() for part in found]), found[site].flatten()

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
            pools.append(PoolRows(sources, losses, short.apply(last), last.norm(dim=1), steps, full))
        self.model.train()
        return {"population": whole / POPULATION, "pools": [pool._asdict() for pool in pools]}

    def adam_scale(self) -> Tensor:
        """Return the square root of Adam's 1 / (sqrt(v) + eps), for lengths in Adam's metric; 1 at first."""
        if not self.optimizer.state:
            return torch.ones(sum(weight.numel() for weight in self.weights))
        states = [self.optimizer.state[weight] for weight in self.weights]
        step = float(states[0]["step"])
        v = torch.cat([state["exp_avg_sq"].flatten() for state in states]) / (1 - 0.999**step)
        # A weight that hardly ever has a gradient (a rare token's) would decide alone.
        return (1 / (v.sqrt() + v.sqrt().mean() * 1e-2)).sqrt()

    def adam_steps(self, last: Tensor, step: int, sources: list[str]) -> Tensor:
        """Return the paper's features: Adam steps, each source's largest coordinates, 0 elsewhere, shortened."""
        state = self.optimizer.state.get(self.site.weight)
        if state:
            history = AdamHistory(state["exp_avg"].flatten(), state["exp_avg_sq"].flatten(), step)
        else:
            history = AdamHistory(torch.zeros(self.site.dim), torch.zeros(self.site.dim), 0)
        steps = adam_step(last, history, AdamConstants(0.9, 0.999, 1e-8)).step
        found = torch.zeros(len(last), COORDINATES)
        for source in set(sources):
            rows = torch.tensor([i for i, name in enumerate(sources) if name == source])
            found[rows] = steps[rows][:, largest_coordinates(steps[rows].mean(0), COORDINATES)]
        return found


Picked = tuple[Tensor, Tensor]
Rule = Callable[[PoolRows, torch.Generator], Picked]


def even(rows: Tensor) -> Picked:
    return rows, torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)


def fitted(pool: PoolRows, rows: Tensor) -> Picked:
    return rows, fit_weights(pool.last, rows) / len(rows)


def by_source(pool: PoolRows, pick: Callable[[Tensor, int], Tensor], keep: float = 0.5) -> Tensor:
    counts = {name: pool.sources.count(name) for name in sorted(set(pool.sources))}
    quotas = source_quotas(counts, round(keep * len(pool.sources)))
    groups = {name: torch.tensor([i for i, s in enumerate(pool.sources) if s == name]) for name in counts}
    return torch.cat([rows[pick(rows, quotas[name])] for name, rows in groups.items()])


def at_random(keep: float) -> Rule:
    return lambda pool, draw: even(torch.randperm(POOL, generator=draw)[: round(keep * POOL)])


def control(pool: PoolRows, draw: torch.Generator) -> Tensor:
    return by_source(pool, lambda rows, quota: torch.randperm(len(rows), generator=draw)[:quota])


def direction(pool: PoolRows) -> Tensor:
    return by_source(pool, lambda rows, quota: match_direction(pool.last[rows], quota))


def sample(pool: PoolRows, draw: torch.Generator) -> Picked:
    rows, chances = sample_by_size(pool.norms, POOL // 2, draw)
    return rows, 1 / chances[rows] / POOL


HALF, WHOLE = "random, half of the pool", "the whole pool"
RULES: dict[str, Rule] = {
    HALF: at_random(0.5),
    "random, five eighths": at_random(0.625),
    "random, three quarters": at_random(0.75),
    WHOLE: at_random(1.0),
    "control (random by source)": lambda pool, draw: even(control(pool, draw)),
    "control, fitted weights": lambda pool, draw: fitted(pool, control(pool, draw)),
    "medoids of Adam steps (the paper)": lambda pool, draw: even(
        by_source(pool, lambda rows, quota: facility_location(pool.largest[rows], quota, "l1"))
    ),
    "medoids of last-V gradients, l2": lambda pool, draw: even(
        by_source(pool, lambda rows, quota: facility_location(pool.last[rows], quota, "l2"))
    ),
    "highest loss by source": lambda pool, draw: even(
        by_source(pool, lambda rows, quota: largest_rows(pool.losses[rows], quota))
    ),
    "largest last-V norm by source": lambda pool, draw: even(
        by_source(pool, lambda rows, quota: largest_rows(pool.norms[rows], quota))
    ),
    "sampled by last-V norm, weighted (unbiased)": sample,
    "direction by source": lambda pool, draw: even(direction(pool)),
    "direction by source, fitted weights": lambda pool, draw: fitted(pool, direction(pool)),
    "direction of the whole pool": lambda pool, draw: even(match_direction(pool.last, POOL // 2)),
    "direction of the whole pool, fitted weights": lambda pool, draw: fitted(
        pool, match_direction(pool.last, POOL // 2)
    ),
    "direction by full gradients (mark)": lambda pool, draw: even(match_direction(pool.full, POOL // 2)),
}


class Judged(NamedTuple):
    """One rule at one stage; lengths are beside that of the true mean gradient."""

    signal: float  # the rule's mean along the true gradient
    noise: float  # variance over pools and draws, beside the squared signal
    bias: float  # squared length of what the rule's mean has across the true gradient, beside the squared signal
    cosine: float  # with the other rows' mean gradient, mean over pools
    cosine_half: float  # half of its 95 % interval over pools


def apply_rule(rule: Rule, pools: list[PoolRows]) -> Tensor:
    """Return the kept rows' weighted mean gradients (pools, draws, SKETCH)."""
    means = []
    for number, pool in enumerate(pools):
        draws = []
        for draw in range(DRAWS):
            rows, weights = rule(pool, torch.Generator().manual_seed(number * DRAWS + draw))
            draws.append(weights.float() @ pool.full[rows])
        means.append(torch.stack(draws))
    return torch.stack(means)


def judge(found: Tensor, whole: Tensor, population: Tensor) -> Judged:
    """Take a rule's mean gradients apart.

    The true gradient p is not known. The mean of other rows is p plus noise that is independent of the pools, so inner
    products with it are unbiased, and so are inner products of different pools.

    Args:
        found: (pools, draws, d) of the rule.
        whole: (pools, draws, d) of the whole pools.
        population: (d,), the mean gradient of other rows.
    """
    unit = (whole @ population).mean()  # |p|^2
    signal = (found @ population).mean() / unit
    pools = found.mean(1)
    count = len(pools)
    length = (pools.sum(0).square().sum() - pools.square().sum()) / (count * (count - 1))  # of the rule's mean, squared
    noise = (found.square().sum(-1).mean() - length) / (signal.square() * unit)
    bias = length / (signal.square() * unit) - 1
    cosines = torch.cosine_similarity(found, population[None, None], dim=-1).mean(1)
    return Judged(*map(float, (signal, noise, bias, cosines.mean(), 1.96 * cosines.std() / count**0.5)))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mixture", help="a configuration of this folder: reasoning, real")
    mixture = parser.parse_args().mixture
    folder = Path("runs/experiments") / mixture / "variance"
    gather(mixture, folder)
    lines = [
        f"# The gradient of the kept rows, {mixture} mixture",
        "",
        f"`python benchmarks/experiments/variance.py {mixture}`; {describe_setting(str(SEED))}. A Llama of 2.2 million "
        f"parameters trained in full on random batches of {BATCH}; at each stage {POOLS} pools of {POOL} rows of big "
        "sources, half of each kept. Gradients over all weights, after the first stage in Adam's metric.",
        "",
        "- *signal*: the rule's mean gradient along the true one; 1 is right, more is a longer step.\n"
        "- *noise*: variance over pools, beside the squared signal. It averages out over steps.\n"
        "- *bias*: the squared part of the rule's mean across the true gradient, beside the squared signal; within "
        "about a thirtieth of the noise it is chance. It does not average out.\n"
        "- *rows*: as many random rows have this noise.\n"
        f"- *cosine* of one step's gradient with the mean of {POPULATION} other rows, with a 95 % interval over pools. "
        "Noise and bias both lower it.",
    ]
    results: dict[str, Any] = {"setting": describe_setting(str(SEED))}
    for step in STAGES:
        held = torch.load(folder / f"stage-{step}.pt")
        pools = [PoolRows(**pool) for pool in held["pools"]]
        means = {name: apply_rule(rule, pools) for name, rule in RULES.items()}
        judged = {name: judge(found, means[WHOLE], held["population"]) for name, found in means.items()}
        lines += ["", f"## After {step} steps", "", "| rule | signal | noise | bias | rows | cosine |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | --- |"]
        for name, each in judged.items():
            rows = judged[HALF].noise / each.noise * POOL / 2
            lines.append(
                f"| {name} | {each.signal:.2f} | {each.noise:.1f} | {each.bias:.1f} | {rows:.1f} | "
                f"{each.cosine:.3f} ± {each.cosine_half:.3f} |"
            )
        results[str(step)] = {name: each._asdict() for name, each in judged.items()}
    (RESULTS / f"variance_{mixture}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (RESULTS / f"variance_{mixture}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
