"""How far is the gradient of the kept rows from that of all data, and is the cause noise or bias?

    python benchmarks/experiments/variance.py reasoning

Trains the experiment's model on random batches. At three stages, computes the gradients over *all* weights for the rows
of many pools of large sources, one backward per row. Every rule picks half of a pool by what the selection pass knows.
Writes docs/results/variance_<mixture>.md and .json; raw data is stored in runs/experiments/<mixture>/variance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from setting import describe_setting
from variance_gather import BATCH, POOL, POOLS, POPULATION, SEED, STAGES, PoolRows, gather
from variance_steps import RULES as STEP_RULES
from variance_steps import (
    OverSteps,
    Step,
    at_random,
    by_source,
    control,
    even,
    judge_steps,
    matched,
    medoids,
    paper,
    sample,
)

from colm.select.direction import match_direction
from colm.select.facility import facility_location
from colm.select.rules import largest_rows
from colm.select.weighting import fit_weights

DRAWS = 5
KEPT = POOL // 2
LARGER = (1, 2, 4)
"""Numbers of pools to merge, so that a smaller fraction is kept."""

RESULTS = Path(__file__).parents[2] / "docs" / "results"

Picked = tuple[Tensor, Tensor]
Rule = Callable[[PoolRows, torch.Generator], Picked]


def weigh(rows: Tensor) -> Picked:
    return rows, even(rows)


def fitted(pool: PoolRows, rows: Tensor) -> Picked:
    return rows, fit_weights(pool.last[rows], len(rows) * pool.last.mean(0)) / len(rows)


def once(step: Step, budget: int = KEPT) -> Rule:
    """Return the rule for many steps without a residual."""
    return lambda pool, draw: step(pool, budget, draw, None)[:2]


def direction(pool: PoolRows) -> Tensor:
    return by_source(pool, KEPT, lambda rows, quota: match_direction(pool.last[rows], quota))


HALF, WHOLE = "random, half of the pool", "the whole pool"
RULES: dict[str, Rule] = {
    HALF: once(at_random),
    "random, five eighths": once(at_random, POOL * 5 // 8),
    "random, three quarters": once(at_random, POOL * 3 // 4),
    WHOLE: once(at_random, POOL),
    "control (random by source)": once(control),
    "control, fitted weights": lambda pool, draw: fitted(pool, control(pool, KEPT, draw, None)[0]),
    "medoids of Adam steps (the paper)": once(paper),
    "medoids of last-V gradients, l2": once(medoids),
    "highest loss by source": lambda pool, draw: weigh(
        by_source(pool, KEPT, lambda rows, quota: largest_rows(pool.losses[rows], quota))
    ),
    "largest last-V norm by source": lambda pool, draw: weigh(
        by_source(pool, KEPT, lambda rows, quota: largest_rows(pool.norms[rows], quota))
    ),
    "sampled by last-V norm, weighted (unbiased)": once(sample),
    "direction by source": lambda pool, draw: weigh(direction(pool)),
    "direction by source, fitted weights": lambda pool, draw: fitted(pool, direction(pool)),
    "direction of the whole pool": once(matched(0.0, weighted=False)),
    "direction of the whole pool, fitted weights": once(matched(0.0)),
    "direction of the whole pool, fitted weights, in Adam's metric": once(matched(0.0, scaled=True)),
    "direction at the largest coordinates": lambda pool, draw: weigh(match_direction(pool.cut, KEPT)),
    "direction by full gradients (mark)": lambda pool, draw: weigh(match_direction(pool.full, KEPT)),
}


class Judged(NamedTuple):
    """One rule at one stage; lengths are relative to that of the true mean gradient."""

    signal: float  # the rule's mean along the true gradient
    noise: float  # variance over pools and draws, relative to the squared signal
    bias: float  # squared length of the rule's mean orthogonal to the true gradient, relative to the squared signal
    cosine: float  # with the other rows' mean gradient, mean over pools
    cosine_half: float  # half of its 95 % interval over pools


def join(pools: list[PoolRows]) -> PoolRows:
    """Merge pools, without Adam steps and cut gradients: their coordinates differ from pool to pool."""
    sources = [source for pool in pools for source in pool.sources]
    losses, last, scaled, norms, full = (
        torch.cat([getattr(pool, key) for pool in pools]) for key in ("losses", "last", "scaled", "norms", "full")
    )
    return PoolRows(sources, losses, last, scaled, torch.empty(0), norms, torch.empty(0), full)


LARGER_RULES: dict[str, Rule] = {
    "random": once(at_random),
    "largest last-V norm": lambda pool, draw: weigh(largest_rows(pool.norms, KEPT)),
    "medoids of last-V gradients, l2": lambda pool, draw: weigh(facility_location(pool.last, KEPT, "l2")),
    "direction": once(matched(0.0, weighted=False)),
    "direction, fitted weights (matched)": once(matched(0.0)),
    "direction, fitted weights, in Adam's metric": once(matched(0.0, scaled=True)),
}


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
    """Decompose a rule's mean gradients.

    The true gradient p is unknown. The mean of other rows is p plus noise that is independent of the pools, so inner
    products with that mean are unbiased, and so are inner products of different pools.

    Args:
        found: (pools, draws, d) of the rule.
        whole: (pools, draws, d) of the whole pools, which give the length of p.
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


def tabulate(rows: Iterable[tuple[str, Judged]], unit: float) -> list[str]:
    """Return a table; `unit` is the noise of `KEPT` random rows."""
    lines = ["| rule | signal | noise | bias | rows | with bias | cosine |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: | --- |"]
    for name, each in rows:
        lines.append(
            f"| {name} | {each.signal:.2f} | {each.noise:.2f} | {each.bias:.2f} | {KEPT * unit / each.noise:.0f} | "
            f"{KEPT * unit / (each.noise + max(each.bias, 0)):.0f} | {each.cosine:.3f} ± {each.cosine_half:.3f} |"
        )
    return lines


def judge_larger(pools: list[PoolRows]) -> dict[int, dict[str, OverSteps]]:
    """Return each rule's result over many steps, by pool size."""
    found = {}
    for times in LARGER:
        joined = [join(pools[start : start + times]) for start in range(0, len(pools) - times + 1, times)]
        rules = {name: rule for name, rule in STEP_RULES.items() if times == 1 or "paper" not in name}
        found[POOL * times] = judge_steps(rules, joined if times > 1 else pools, KEPT)
    return found


def tabulate_steps(found: dict[int, dict[str, OverSteps]]) -> list[str]:
    sizes = list(found)
    lines = [f"| rule | {' | '.join(f'of {size}' for size in sizes)} |", f"| --- |{' ---: |' * len(sizes)}"]
    for name in found[sizes[0]]:
        cells = [f"{found[size][name].rows:.0f}" if name in found[size] else "-" for size in sizes]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def judge_stage(pools: list[PoolRows], population: Tensor) -> tuple[dict[str, Judged], dict[str, Judged]]:
    """Return every rule's result on single pools, and some rules' results on merged pools."""
    means = {name: apply_rule(rule, pools) for name, rule in RULES.items()}
    judged = {name: judge(found, means[WHOLE], population) for name, found in means.items()}
    larger = {}
    for times in LARGER:
        joined = [join(pools[start : start + times]) for start in range(0, len(pools) - times + 1, times)]
        for name, rule in LARGER_RULES.items():
            larger[f"{KEPT} of {POOL * times}: {name}"] = judge(apply_rule(rule, joined), means[WHOLE], population)
    return judged, larger


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mixture", help="a configuration of this folder: reasoning, real")
    mixture = parser.parse_args().mixture
    folder = Path("runs/experiments") / mixture / "variance"
    gather(mixture, folder)
    setting = describe_setting(str(SEED))
    lines = [
        f"# The gradient of the kept rows, {mixture} mixture",
        "",
        f"`python benchmarks/experiments/variance.py {mixture}`; {setting}. A Llama of 2.2 million parameters, trained "
        f"in full on random batches of {BATCH}; at each stage {POOLS} pools of {POOL} rows of large sources, {KEPT} "
        "rows of each kept. Gradients over all weights, after the first stage in Adam's metric.",
        "",
        "- *signal*: the rule's mean gradient along the true one; 1 is right, more is a longer step.\n"
        "- *noise*: variance over pools, relative to the squared signal. It averages out over steps.\n"
        "- *bias*: the squared part of the rule's mean orthogonal to the true gradient, relative to the squared "
        "signal; within about a thirtieth of the noise it is chance. It does not average out.\n"
        "- *rows*: the number of random rows with this noise; *with bias*: with this noise and bias together.\n"
        f"- *cosine* of one step's gradient with the mean of {POPULATION} other rows, with a 95 % interval over pools. "
        "Noise and bias both lower it.",
        "",
        "Noise averages out over steps, bias does not. So the last table of each stage shows how close the kept rows' "
        f"mean gradient comes to that of all {POOLS * POOL} rows of the pools, at fixed weights of the model.",
    ]
    results: dict[str, Any] = {}
    for step in STAGES:
        held = torch.load(folder / f"stage-{step}.pt")
        pools = [PoolRows(**pool) for pool in held["pools"]]
        judged, larger = judge_stage(pools, held["population"])
        unit = judged[HALF].noise
        lines += ["", f"## After {step} steps", "", *tabulate(judged.items(), unit)]
        lines += ["", "From larger pools:", "", *tabulate(larger.items(), unit)]
        over_steps = judge_larger(pools)
        lines += [
            "",
            f"Over all pools in turn, {KEPT} rows of each: number of random rows per pool with an equally good mean.",
        ]
        lines += ["", *tabulate_steps(over_steps)]
        results[str(step)] = {
            "one_step": {name: each._asdict() for name, each in {**judged, **larger}.items()},
            "over_steps": {
                str(size): {name: each._asdict() for name, each in held_rules.items()}
                for size, held_rules in over_steps.items()
            },
        }
    (RESULTS / f"variance_{mixture}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    raw = json.dumps({"setting": setting, "stages": results}, indent=1) + "\n"
    (RESULTS / f"variance_{mixture}.json").write_text(raw, encoding="utf-8")


if __name__ == "__main__":
    main()
