"""Which way to pick and weight rows comes closest to the pool's gradient? By the cheap figure, before any training.

Reads the files of `gather.py` and writes docs/results/objectives.md:

    python benchmarks/fidelity/objectives.py --data runs/fidelity

Every rule picks half of a pool of large sources' rows, without the small-source rule, using what the selection pass
knows (the last value projection's gradients, losses) or, as a mark, the full gradients. Rules are judged by the cosine
and the relative error between the weighted mean and the pool's mean gradient over all trainable weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from study import ADAM, Method, Record, by_quota, interval, matrix, random_curve
from torch import Tensor

from colm.features.adam import to_adam_steps
from colm.select.direction import match_direction
from colm.select.facility import medoids_of_distances, pairwise_distances
from colm.select.rules import largest_rows
from colm.select.sampling import sample_by_size

DRAWS = 20
RIDGE = 0.3


class Knowledge(NamedTuple):
    """The information available to a rule."""

    last: Tensor  # (n, D) exact last-V gradients
    steps: Tensor  # (n, D), the same gradients as Adam steps with the history of the default's picks
    losses: Tensor  # (n,)
    full: Tensor  # (n,), norms of the full gradients: a mark, not known in a run
    pool: Record


Rule = Callable[[Knowledge, torch.Generator], tuple[Tensor, Tensor]]
"""Returns the picks (k,) and their weights (k,), which sum to 1 unless the rule says otherwise."""


def even(rows: Tensor) -> Tensor:
    return torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)


def fit(known: Knowledge, rows: Tensor) -> Tensor:
    """Weights that bring the picks' mean last-V gradient closest to the pool's, shrunk toward uniform ones."""
    x = known.last[rows].double()
    products = x @ x.T
    start = even(rows)
    missing = x @ known.last.double().mean(0) - products @ start
    ridge = RIDGE * products.diagonal().mean() * torch.eye(len(rows), dtype=torch.float64)
    return start + torch.linalg.solve(products + ridge, missing)


def count_nearest(distances: Tensor, rows: Tensor) -> Tensor:
    nearest = distances[:, rows].argmin(1)
    return torch.bincount(nearest, minlength=len(rows)).double() / len(distances)


def half(known: Knowledge) -> int:
    return len(known.last) // 2


def draw(sizes: Callable[[Knowledge], Tensor], *, weighted: bool) -> Rule:
    def rule(known: Knowledge, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows, chances = sample_by_size(sizes(known), half(known), generator)
        return rows, 1 / chances[rows] / len(known.last) if weighted else even(rows)

    return rule


def take(
    pick: Callable[[Knowledge], Tensor], weigh: Callable[[Knowledge, Tensor], Tensor] = lambda known, rows: even(rows)
) -> Rule:
    def rule(known: Knowledge, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = pick(known)
        return rows, weigh(known, rows)

    return rule


def random_half(known: Knowledge, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(known.last), generator=generator)[: half(known)]


def by_source(pick: Callable[[Knowledge, Tensor, int], Tensor]) -> Callable[[Knowledge], Tensor]:
    return lambda known: torch.tensor(by_quota(known.pool, lambda rows, quota: pick(known, rows, quota)))


def norms(known: Knowledge) -> Tensor:
    return known.last.norm(dim=1)


def medoids(known: Knowledge) -> Tensor:
    return medoids_of_distances(pairwise_distances(known.last), half(known))


def full_medoids(known: Knowledge) -> Tensor:
    return medoids_of_distances(known.pool["l1"], half(known))


RULES: dict[str, Rule] = {
    "random": lambda known, generator: (rows := random_half(known, generator), even(rows)),
    "random, fitted weights": lambda known, generator: (rows := random_half(known, generator), fit(known, rows)),
    "sampled by last-V norm, weighted (unbiased)": draw(norms, weighted=True),
    "sampled by root of last-V norm, weighted": draw(lambda known: norms(known).sqrt(), weighted=True),
    "sampled by full norm, weighted (mark)": draw(lambda known: known.full, weighted=True),
    "sampled by loss, weighted": draw(lambda known: known.losses, weighted=True),
    "sampled by last-V norm, uniform": draw(norms, weighted=False),
    "largest last-V norm": take(lambda known: largest_rows(norms(known), half(known))),
    "largest last-V norm by source": take(
        by_source(lambda known, rows, quota: largest_rows(norms(known)[rows], quota))
    ),
    "largest last-V norm, fitted weights": take(lambda known: largest_rows(norms(known), half(known)), fit),
    "direction of the mean last-V gradient": take(lambda known: match_direction(known.last, half(known))),
    "direction by source": take(by_source(lambda known, rows, quota: match_direction(known.last[rows], quota))),
    "direction, fitted weights": take(lambda known: match_direction(known.last, half(known)), fit),
    "direction of the mean Adam step": take(lambda known: match_direction(known.steps, half(known))),
    "medoids of last-V gradients": take(medoids),
    "medoids of last-V gradients, fitted weights": take(medoids, fit),
    "medoids of last-V gradients, cluster sizes": take(
        medoids, lambda known, rows: count_nearest(pairwise_distances(known.last), rows)
    ),
    "medoids of full gradients, cluster sizes (mark)": take(
        full_medoids, lambda known, rows: count_nearest(known.pool["l1"], rows)
    ),
}


def judge(pool: Record, rows: Tensor, weights: Tensor) -> tuple[float, float]:
    """Return cosine and relative error of the weighted mean gradient, from inner products."""
    products: Tensor = pool["products"]
    whole = products.mean()
    cross = weights @ products[rows].mean(1)
    kept = weights @ products[rows][:, rows] @ weights
    return float(cross / (whole * kept).sqrt()), float(((whole - 2 * cross + kept).clamp_min(0) / whole).sqrt())


def study_stage(pools: list[Record], steps: list[Record]) -> dict[str, Tensor]:
    """Return each rule's cosines and errors, (pools, draws, 2)."""
    history = Method(lambda rows, number: matrix(rows)).history(steps, pools[0]["features"].shape[1])
    found: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in RULES}
    for number, pool in enumerate(pools):
        last: Tensor = pool["features"]
        full = pool["products"].diagonal().sqrt()
        known = Knowledge(last, to_adam_steps(last.clone(), history, ADAM), pool["losses"], full, pool)
        for name, rule in RULES.items():
            generator = torch.Generator().manual_seed(number)
            draws = DRAWS if "random" in name or "sampled" in name else 1
            found[name].append([judge(pool, *rule(known, generator)) for _ in range(draws)])
    return {name: torch.tensor(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("runs/fidelity"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "docs" / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = json.loads((arguments.data / "about.json").read_text(encoding="utf-8"))
    lines = [
        "# Ways to pick and weight rows, by the gradient alone",
        "",
        f"`python benchmarks/fidelity/gather.py`, then `python benchmarks/fidelity/objectives.py`; {about['setting']}. "
        "The pools and stages of [estimators.md](estimators.md). Half of a pool is kept. Mean and 95 % bootstrap "
        "interval over pools and draws; *effective rows*: how many random rows have the same cosine. A weighted mean "
        "may be shorter or longer than a uniform one, so its error gives no effective batch size; Adam ignores scale.",
    ]
    results: dict[str, Any] = {"about": about, "stages": {}}
    for path in sorted(arguments.data.glob("steps-*.pt"), key=lambda path: int(path.stem.split("-")[1])):
        stage = path.stem.split("-")[1]
        pools = [torch.load(file) for file in sorted(arguments.data.glob(f"pool-{stage}-*.pt"))]
        curves = torch.stack([random_curve(pool) for pool in pools])
        lines += ["", f"## After {stage} steps ({len(pools)} pools)", ""]
        lines += ["| rule | cosine | relative error | effective rows |", "| --- | --- | --- | --- |"]
        results["stages"][stage] = {}
        for name, values in study_stage(pools, torch.load(path)).items():
            cosine, error = interval(values[:, :, 0]), interval(values[:, :, 1])
            rows = interval(values[:, :, 0], curves)
            results["stages"][stage][name] = {"cosine": cosine, "error": error, "effective_rows": rows}
            lines.append(f"| {name} | {_cell(cosine, 3)} | {_cell(error, 2)} | {_cell(rows, 1)} |")
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "objectives.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (arguments.out / "objectives.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(figures: tuple[float, float, float], digits: int) -> str:
    mean, low, high = figures
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


if __name__ == "__main__":
    main()
