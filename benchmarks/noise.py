"""How near is the noise scale of the last value projection to that of all trained weights, in the optimizer's metric?

    python benchmarks/noise.py reasoning     # docs/results/noise.md

Trains the experiment's model on random batches, as experiments/variance.py does. At stages of the training, computes
the gradients of rows that training does not reach, one backward per row. Needs the output of experiments/prepare.py;
inner products of the gradients are stored in runs/noise, so that an interrupted command goes on.
"""

from __future__ import annotations

import argparse
import sys
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent / "experiments"))
from setting import describe_setting
from variance_gather import BATCH, SEED, Gathering

from colm.features.shorten import draw_sketch
from colm.noise import NOTHING, NoiseTerms, noise_ratio, noise_terms

STAGES = (10, 50, 140)
POOLS, POOL = 24, 32
SKETCH = 2**14
PARTS = {"last value projection": ("last",), "all but embedding and head": ("rest",), "all": ("rest", "tokens")}
"""Weights, and which inner products add up to theirs."""

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "noise.md"


def optimizer_scale(gathering: Gathering) -> list[Tensor]:
    """Return what `colm.features.adam.adam_scale` does, for every weight."""
    scales = []
    for weight in gathering.weights:
        state = gathering.optimizer.state[weight]
        corrected = state["exp_avg_sq"].flatten() / (1 - 0.999 ** float(state["step"]))
        scales.append(torch.where(corrected > 0, (corrected.sqrt() + 1e-8).rsqrt(), 0.0))
    return scales


def measure(gathering: Gathering) -> dict[str, Any]:
    """Return the rows' sources, and the inner products of their scaled gradients by part of the weights."""
    gathering.model.eval()
    scale = torch.cat(optimizer_scale(gathering))
    names = [name for name, _ in gathering.model.named_parameters()]
    sizes = [weight.numel() for weight in gathering.weights]
    tokens = torch.cat(
        [torch.full((size,), "embed" in name or "lm_head" in name) for name, size in zip(names, sizes, strict=True)]
    )
    chosen = {"tokens": tokens.nonzero()[:, 0], "rest": (~tokens).nonzero()[:, 0]}
    last = slice(gathering.first, gathering.first + gathering.site.dim)
    rows = gathering.order[::-1][: POOLS * POOL]  # training does not reach them
    found: dict[str, list[Tensor]] = {"last": [], "rest": [], "tokens": []}
    for position in rows:
        _, gradient, _ = gathering.gradients(gathering.pool([position]), [0])
        gradient *= scale
        found["last"].append(gradient[last].double())
        for part, columns in chosen.items():
            sketch = draw_sketch(len(columns), SKETCH, gradient.device)
            values = gradient[columns][None]
            found[part].append((values if sketch is None else sketch.apply(values))[0].double())
    gathering.model.train()
    stacked = {part: torch.stack(held) for part, held in found.items()}
    return {
        "sources": [gathering.sources[position] for position in rows],
        "products": {part: held @ held.T for part, held in stacked.items()},
    }


def add_up(terms: list[NoiseTerms]) -> NoiseTerms:
    """Return the sums over pools, without fading: the weights are those of one stage."""
    return NoiseTerms(*map(sum, zip(*terms, strict=True))) if terms else NOTHING


def ratio(terms: list[NoiseTerms]) -> float:
    total = add_up(terms)
    return total.spread / total.shared


def with_interval(values: list[float], whole: float) -> tuple[float, float]:
    """Return an estimate with half of its 95 % interval, from those that leave out one pool each (jackknife)."""
    mean, count = sum(values) / len(values), len(values)
    return whole, 1.96 * sqrt((count - 1) / count * sum((value - mean) ** 2 for value in values))


def pools_of(products: Tensor) -> list[NoiseTerms]:
    starts = range(0, len(products), POOL)
    return [noise_terms(products[start : start + POOL, start : start + POOL]) for start in starts]


def tabulate(step: int, held: dict[str, Any]) -> list[str]:
    products = {name: sum(held["products"][part] for part in parts) for name, parts in PARTS.items()}
    terms = {name: pools_of(found) for name, found in products.items()}
    reference = terms["last value projection"]
    lines = [f"## After {step} steps", "", "| weights | noise scale, rows | last value projection's / this |"]
    lines += ["| --- | ---: | ---: |"]
    left_out = range(len(reference))
    for name, pools in terms.items():
        value, half = with_interval([ratio(pools[:i] + pools[i + 1 :]) for i in left_out], ratio(pools))
        shares = [ratio(reference[:i] + reference[i + 1 :]) / ratio(pools[:i] + pools[i + 1 :]) for i in left_out]
        share, half_share = with_interval(shares, ratio(reference) / ratio(pools))
        lines.append(f"| {name} | {value:.1f} ± {half:.1f} | {share:.2f} ± {half_share:.2f} |")
    lines += ["", "By source, of all rows of the source as one group (empty: not clear):", ""]
    lines += [f"| source | rows | {' | '.join(products)} |", f"| --- | ---: |{' ---: |' * len(products)}"]
    for source in sorted(set(held["sources"])):
        own = [i for i, name in enumerate(held["sources"]) if name == source]
        scales = [noise_ratio(noise_terms(found[own][:, own])) for found in products.values()]
        shown = ["" if scale is None else f"{scale:.1f}" for scale in scales]
        lines.append(f"| {source} | {len(own)} | {' | '.join(shown)} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mixture", help="a configuration of benchmarks/experiments: reasoning, real")
    mixture = parser.parse_args().mixture
    torch.set_num_threads(1)
    folder = Path("runs/noise") / mixture
    folder.mkdir(parents=True, exist_ok=True)
    paths = {step: folder / f"stage-{step}.pt" for step in STAGES}
    if not all(path.exists() for path in paths.values()):
        torch.manual_seed(SEED)
        gathering = Gathering(mixture)
        for step in range(max(STAGES) + 1):
            if step in STAGES and not paths[step].exists():
                torch.save(measure(gathering), paths[step].with_suffix(".part"))
                paths[step].with_suffix(".part").rename(paths[step])
                print(f"stage {step}", flush=True)
            gathering.train(step)
    lines = [
        f"# The noise scale of the last value projection and of all weights, {mixture} mixture",
        "",
        f"`python benchmarks/noise.py {mixture}`; {describe_setting(str(SEED))}. A Llama of 2.2 million parameters, "
        f"trained in full on random batches of {BATCH}; at each stage {POOLS} pools of {POOL} random rows that it is "
        f"not trained on. Gradients in the optimizer's metric, sketched to {SKETCH:,} coordinates except for the last "
        "value projection's. ± is half of a 95 % interval (jackknife over pools).",
        "",
    ]
    for step, path in paths.items():
        lines += tabulate(step, torch.load(path))
    RESULTS.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    print(f"Written to {RESULTS}.")


if __name__ == "__main__":
    main()
