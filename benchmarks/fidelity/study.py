"""How good are the zeroth-order estimates, and how do their errors affect the selection?

Reads the files of `gather.py` and writes a page with tables, a plot, and the figures as JSON:

    python benchmarks/fidelity/study.py --data runs/fidelity

Intervals are 95 % bootstrap intervals over pools and, for random methods, over draws. Everything comes from
the one training run that was gathered.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colm.config_parts import Pick
from colm.features.adam import AdamConstants, empty_history
from colm.features.factors import GradientPiece, PieceFeatures
from colm.features.spsa import SpsaFeatures
from colm.picking import Candidates, Scale, pick_from_features
from colm.select.facility import facility_location, medoids_of_distances
from colm.select.quota import source_quotas
from colm.select.sampling import random_rows
from colm.step.pool_info import PoolFacts, group_by_source
from colm.types import AdamHistory, Features

ADAM, KEEP = AdamConstants(0.9, 0.999, 1e-8), 0.5
PROBES, DRAWS, RANDOM_DRAWS, BOOTSTRAPS = (1, 4, 16, 64), 15, 400, 2000

Record = dict[str, Any]
"""The data that `gather.py` stores for one pool."""


class Outcome(NamedTuple):
    """Figures of selections from pools; each (pools, draws)."""

    cosine: Tensor  # between the kept and the pool's mean gradient over all trainable weights
    error: Tensor  # between the kept rows' and the pool's mean, relative to the pool's norm
    agreement: Tensor  # share of the picks that the exact features also pick
    gradient: Tensor  # mean cosine between estimated and exact features; nan if nothing is estimated


def facts_of(pool: Record) -> PoolFacts:
    rows = len(pool["sources"])
    ones = [1] * rows
    return PoolFacts(pool["sources"], pool["index"], ones, ones, slots=1, rows_by_rank=[rows], rank=0)


def by_quota(pool: Record, pick: Callable[[Tensor, int], Tensor]) -> list[int]:
    """Pick a quota from each source; `pick` maps a source's rows and its quota to positions among them."""
    facts = facts_of(pool)
    groups = group_by_source(facts.order, facts)
    quotas = source_quotas({name: len(rows) for name, rows in groups.items()}, round(KEEP * len(facts.source)))
    return [rows[i] for name, rows in groups.items() for i in pick(torch.tensor(rows), quotas[name]).tolist()]


def matrix(rows: Tensor) -> Features:
    piece = GradientPiece(rows, None, None)
    return PieceFeatures([piece], [list(range(len(rows)))], rows.shape[1], rows.device)


def estimate(rows: Tensor, probes: int, seed: int) -> SpsaFeatures:
    """Return SPSA's limit for a small difference: projections on `probes` directions."""
    directions = torch.randn(probes, rows.shape[1], generator=torch.Generator().manual_seed(seed))
    return SpsaFeatures(rows @ directions.T, directions[:, :, None])


class Method(NamedTuple):
    """Features as in a run: its own estimates, with the history of its own picks."""

    make: Callable[[Tensor, int], Features]  # exact rows (n, D) and a step number -> features
    adam: bool = True

    def history(self, steps: list[Record], dim: int) -> AdamHistory:
        history = empty_history(dim, torch.device("cpu"))
        for number, step in enumerate(steps):
            history = self.pick(step, number, history)[1] or history
        return history

    def pick(self, pool: Record, number: int, history: AdamHistory) -> tuple[list[int], AdamHistory | None]:
        facts = facts_of(pool)
        picked = pick_from_features(
            self.make(pool["features"], number),
            Candidates(facts.order, round(KEEP * len(facts.source)), facts),
            Pick(),
            Scale(history, ADAM if self.adam else None),
        )
        return picked.positions, picked.history


def judge(pool: Record, picks: list[int]) -> tuple[float, float]:
    """Return cosine and relative error between the kept rows' and the pool's mean gradient, from inner products."""
    products: Tensor = pool["products"]
    whole, cross, kept = products.mean(), products[picks].mean(), products[picks][:, picks].mean()
    return float(cross / (whole * kept).sqrt()), float(((whole - 2 * cross + kept).clamp_min(0) / whole).sqrt())


def random_curve(pool: Record) -> Tensor:
    """Return the mean cosine of random subsets of 1, 2, ... rows, not stratified."""
    products: Tensor = pool["products"]
    rows = len(products)
    generator = torch.Generator().manual_seed(0)
    orders = torch.rand(RANDOM_DRAWS, rows, generator=generator).argsort(1)
    places = orders.argsort(1)  # a row is among the first k of its draw's order if its position is below k
    curve = []
    for size in range(1, rows + 1):
        kept = (places < size).double() / size
        cross, square = kept @ products.mean(1), ((kept @ products) * kept).sum(1)
        curve.append((cross / (products.mean() * square).sqrt()).mean())
    return torch.stack(curve).float()


def fixed_picks(pool: Record) -> dict[str, list[int]]:
    """Return the picks of methods without a history."""
    norms = pool["products"].diagonal().sqrt()

    def largest(score: Tensor, rows: Tensor, quota: int) -> Tensor:
        return score[rows].argsort(descending=True, stable=True)[:quota]

    def medoids(features: Tensor, rows: Tensor, quota: int) -> Tensor:
        return facility_location(features[rows], quota)

    return {
        "highest loss": by_quota(pool, partial(largest, pool["losses"])),
        "largest last-V gradient norm": by_quota(pool, partial(largest, pool["features"].norm(dim=1))),
        "largest full gradient norm": by_quota(pool, partial(largest, norms)),
        "medoids of losses": by_quota(pool, partial(medoids, pool["losses"][:, None])),
        "medoids of mean hidden states": by_quota(pool, partial(medoids, pool["mean_hidden"])),
        "medoids of last hidden states": by_quota(pool, partial(medoids, pool["last_hidden"])),
        "medoids of the full gradient, l1": by_quota(
            pool, lambda rows, quota: medoids_of_distances(pool["l1"][rows][:, rows], quota)
        ),
        "greedy on the cosine itself (upper mark)": greedy_on_cosine(pool),
    }


def greedy_on_cosine(pool: Record) -> list[int]:
    """Add the row that brings the kept mean's direction closest to the pool's; no quotas."""
    products: Tensor = pool["products"]
    towards = products.mean(1)  # inner product of each row with the pool's mean
    picks: list[int] = []
    left = set(range(len(products)))
    sums, square = torch.zeros(len(products), dtype=products.dtype), torch.tensor(0.0, dtype=products.dtype)
    along = torch.tensor(0.0, dtype=products.dtype)
    for _ in range(round(KEEP * len(products))):
        candidates = torch.tensor(sorted(left))
        lengths = (square + 2 * sums[candidates] + products.diagonal()[candidates]).sqrt()
        best = int(candidates[((along + towards[candidates]) / lengths).argmax()])
        square = square + 2 * sums[best] + products[best, best]
        along, sums = along + towards[best], sums + products[best]
        picks.append(best)
        left.remove(best)
    return picks


def study_stage(pools: list[Record], steps: list[Record]) -> dict[str, Tensor]:
    """Return each method's outcomes, (pools, draws, 4) in the order of `Outcome`."""
    outcomes: dict[str, Tensor] = {}
    dim = pools[0]["features"].shape[1]
    exact = Method(lambda rows, number: matrix(rows))
    plain = exact._replace(adam=False)
    history = exact.history(steps, dim)
    reference = [exact.pick(pool, len(steps), history)[0] for pool in pools]

    def overlap(picks: list[int], number: int) -> float:
        return len(set(picks) & set(reference[number])) / len(picks)

    def record(name: str, picks_of_pools: list[list[list[int]]], cosine: float = float("nan")) -> None:
        """Take, for each pool, the picks of one or several draws."""
        outcomes[name] = torch.tensor(
            [
                [[*judge(pool, picks), overlap(picks, number), cosine] for picks in draws]
                for number, (pool, draws) in enumerate(zip(pools, picks_of_pools, strict=True))
            ]
        )

    generator = torch.Generator().manual_seed(1)
    rows = len(pools[0]["sources"])
    record("random", [[random_rows(rows, rows // 2, generator).tolist() for _ in range(RANDOM_DRAWS)] for _ in pools])
    stratified = partial(by_quota, pick=lambda rows, quota: random_rows(len(rows), quota, generator))
    record("random by source", [[stratified(pool) for _ in range(RANDOM_DRAWS)] for pool in pools])
    fixed = [fixed_picks(pool) for pool in pools]
    for name in fixed[0]:
        record(name, [[picks[name]] for picks in fixed])
    none = plain.history([], dim)
    record("medoids of exact last-V gradients, no Adam", [[plain.pick(pool, 0, none)[0]] for pool in pools])
    record("medoids of exact last-V gradients (default)", [[picks] for picks in reference], 1.0)
    for probes in PROBES:
        for kind in ("fixed", "fresh"):
            name = f"SPSA, {probes} {kind}"
            picks: list[list[list[int]]] = [[] for _ in pools]
            cosines = torch.zeros(len(pools), DRAWS)
            for draw in range(DRAWS):

                def make(
                    rows: Tensor, number: int, probes: int = probes, kind: str = kind, draw: int = draw
                ) -> Features:
                    return estimate(rows, probes, 10_000 * draw + (number if kind == "fresh" else 9_999))

                method = Method(make)
                own = method.history(steps, dim)
                for number, pool in enumerate(pools):
                    at = len(steps) + number
                    picks[number].append(method.pick(pool, at, own)[0])
                    found = make(pool["features"], at).rows(torch.arange(rows))
                    cosines[number, draw] = torch.cosine_similarity(found, pool["features"], dim=1).mean()
            record(name, picks)
            outcomes[name][:, :, Outcome._fields.index("gradient")] = cosines
    return outcomes


def interval(values: Tensor, curves: Tensor | None = None) -> tuple[float, float, float]:
    """Return the mean and its 95 % bootstrap interval, resampling pools and draws.

    A draw belongs to one method for all pools (a fixed direction, say), so the two are resampled crosswise.

    Args:
        values: (pools, draws).
        curves: (pools, sizes), the random subsets' cosines; if given, the figures are `effective_rows`.
    """

    def statistic(pools: Tensor, draws: Tensor) -> Tensor:
        mean = values[pools][:, draws].mean()
        return mean if curves is None else effective_rows(mean, curves[pools].mean(0))

    generator = torch.Generator().manual_seed(0)
    every = statistic(torch.arange(values.shape[0]), torch.arange(values.shape[1]))
    found = [
        statistic(*(torch.randint(count, (count,), generator=generator) for count in values.shape))
        for _ in range(BOOTSTRAPS)
    ]
    resampled = torch.stack(found).sort().values
    return float(every), float(resampled[int(0.025 * BOOTSTRAPS)]), float(resampled[int(0.975 * BOOTSTRAPS)])


def effective_rows(cosine: Tensor, curve: Tensor) -> Tensor:
    """Return how many random rows have this mean cosine; `curve` (sizes,) is the cosine of 1, 2, ... random rows."""
    curve = curve.cummax(0).values
    above = int((curve < cosine).sum())  # the curve's first point at or above
    if above == 0:
        return torch.tensor(1.0)
    if above == len(curve):
        return torch.tensor(float(len(curve)))
    low, high = curve[above - 1], curve[above]
    return above + (cosine - low) / (high - low).clamp_min(1e-9)


def compare_differences(pool: Record) -> list[Record]:
    """Compare finite differences with projections of the exact gradient on the same directions."""
    directions = pool["directions"]
    expected = pool["features"] @ directions.flatten(1).T
    facts = facts_of(pool)

    def pick(slopes: Tensor) -> list[int]:
        features = SpsaFeatures(slopes, directions)
        history = empty_history(features.dim, torch.device("cpu"))
        budget = round(KEEP * len(slopes))
        candidates = Candidates(facts.order, budget, facts)
        return pick_from_features(features, candidates, Pick(), Scale(history, ADAM)).positions

    wanted = set(pick(expected))
    return [
        {
            "eps": eps,
            "error": float((slopes - expected).norm() / expected.norm()),
            "correlation": float(torch.corrcoef(torch.stack([slopes.flatten(), expected.flatten()]))[0, 1]),
            "agreement": len(wanted & set(pick(slopes))) / len(wanted),
        }
        for eps, slopes in pool["slopes"].items()
    ]


def spread_of(pools: list[Record]) -> Record:
    """Return statistics of the pools' gradients: tails, and how the last-V norm tracks the full one."""
    correlations, tails, angles = [], [], []
    for pool in pools:
        full, last = pool["products"].diagonal().sqrt(), pool["features"].norm(dim=1).double()
        correlations.append(torch.corrcoef(torch.stack([full.log(), last.log()]))[0, 1])
        tails.append(full.square().sort(descending=True).values[: len(full) // 2].sum() / full.square().sum())
        unit = pool["products"] / (full[:, None] * full)
        angles.append((unit.sum() - len(full)) / (len(full) * (len(full) - 1)))
    return {
        "correlation": float(torch.stack(correlations).mean()),
        "half": float(torch.stack(tails).mean()),
        "angle": float(torch.stack(angles).mean()),
    }


def main() -> None:
    from page import draw_plot, write_page

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("runs/fidelity"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "docs" / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    about = json.loads((arguments.data / "about.json").read_text())
    results: Record = {"about": about, "probes": PROBES, "draws": DRAWS, "stages": {}}
    for path in sorted(arguments.data.glob("steps-*.pt"), key=lambda path: int(path.stem.split("-")[1])):
        stage = path.stem.split("-")[1]
        pools = [torch.load(file) for file in sorted(arguments.data.glob(f"pool-{stage}-*.pt"))]
        if not pools:
            continue
        rows = len(pools[0]["sources"])
        curves = torch.stack([random_curve(pool) for pool in pools])
        outcomes = study_stage(pools, torch.load(path))
        baseline = outcomes["random by source"][:, :, 0].mean(1, keepdim=True)
        methods = {}
        for name, held in outcomes.items():
            figures = Outcome(*held.unbind(2))
            methods[name] = {field: interval(values) for field, values in figures._asdict().items()}
            methods[name]["over_random_by_source"] = interval(figures.cosine - baseline)
            methods[name]["effective_rows"] = interval(figures.cosine, curves)
        with_differences = [pool for pool in pools if "slopes" in pool]
        results["stages"][stage] = {
            "pools": len(pools),
            "rows": rows,
            "methods": methods,
            "differences": compare_differences(with_differences[0]) if with_differences else [],
            "gradients": spread_of(pools),
            "backward_error": max(pool["backward_error"] for pool in pools),
            "pass_error": max(pool.get("pass_error", 0.0) for pool in pools),
            "curve": curves.mean(0).tolist(),
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "estimators.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    draw_plot(results, arguments.out / "estimators.svg")
    write_page(results, arguments.out / "estimators.md")


if __name__ == "__main__":
    main()
