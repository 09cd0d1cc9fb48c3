"""How the cost of a coreset step grows with the pool, the row length, the vocabulary and the size of the gradient.

    python benchmarks/growth.py --json growth.json

The pool grows on synthetic features, which represent a full value projection of the Llama in benchmarks/step.py. A
step's time is that of 32 rows there, measured in the same run, times N / 32, since forward and backward grow with the
rows. The other three are measured as in benchmarks/step.py, on models that fit a CPU. Seconds are process time on one
thread.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from setting import describe_setting
from step import Step, measure_time, seconds
from step_parts import Shape, build_model, draw_pool

from colm import SelectionConfig
from colm.config_parts import Pick
from colm.features.adam import AdamConstants, empty_history
from colm.features.factors import GradientPiece, PieceFeatures, gradient_piece
from colm.picking import Candidates, Scale, pick_from_features
from colm.select.facility import medoids_of_distances, pairwise_distances
from colm.step.pool import Pool
from colm.step.pool_info import PoolFacts, share_facts

POOLS = (32, 128, 512, 1024, 2048, 4096)
LENGTHS = (128, 512, 2048, 4096)
VOCABULARIES = (32_768, 65_536, 131_072, 262_144)
GRADIENTS = {"LoRA of rank 16": (1024, 16), "135 M parameters": (192, 576), "1 B": (512, 2048), "8 B": (1024, 4096)}
"""Outputs and inputs of the map whose gradient is used, for models of these sizes."""


def synthetic(rows: int, tokens: int, d_out: int, d_in: int) -> PieceFeatures:
    """Return features of random gradients, in the smaller of their two forms, 32 rows per micro-batch."""
    generator = torch.Generator().manual_seed(0)
    pieces: list[GradientPiece] = []
    positions = [list(range(start, min(start + 32, rows))) for start in range(0, rows, 32)]
    for held in positions:
        delta, inputs = (torch.randn(len(held), tokens, size, generator=generator) for size in (d_out, d_in))
        pieces.append(gradient_piece(delta, inputs))
    return PieceFeatures(pieces, positions, d_out * d_in, torch.device("cpu"))


def pick(features: PieceFeatures, facts: PoolFacts) -> None:
    """Do all the work after the features."""
    rows = len(features)
    history = empty_history(features.dim, features.device)
    constants = AdamConstants(0.9, 0.999, 1e-8)
    candidates = Candidates(list(range(rows)), rows // 2, facts)
    pick_from_features(features, candidates, Pick(), Scale(history, constants))


def facts_of(rows: int) -> PoolFacts:
    """Return the info of a pool with one source."""
    ids = torch.ones(rows, 2, dtype=torch.int64)
    return share_facts(Pool({"input_ids": ids, "labels": ids}, 0), ["only"] * rows, list(range(rows)), {"only": rows})


def median_of(action: Callable[[], Any], rounds: int) -> float:
    return statistics.median(seconds(action) for _ in range(rounds))


def grow_pool(rounds: int) -> list[dict[str, float]]:
    shape = Shape()
    step = Step(build_model(shape, lora=False, tokens=128), SelectionConfig(keep_count=16))
    pool = draw_pool(shape, rows=32, micro_batches=4, tokens=128, shortest=0.5, seed=0)
    step.run(pool)
    a_row = statistics.median(sum(step.run(pool)) for _ in range(rounds)) / 32
    found = []
    for rows in POOLS:
        features, facts = synthetic(rows, 128, shape.hidden, shape.hidden), facts_of(rows)
        after = median_of(lambda features=features, facts=facts: pick(features, facts), rounds)
        short = torch.randn(rows, 2560, generator=torch.Generator().manual_seed(0))
        held: list[torch.Tensor] = []
        distances = median_of(lambda short=short, held=held: held.append(pairwise_distances(short)), rounds)
        medoids = median_of(lambda held=held, rows=rows: medoids_of_distances(held[-1], rows // 2), rounds)
        whole = a_row * rows
        found.append(
            {
                "rows": rows,
                "after_features_seconds": after,
                "facility_seconds": distances + medoids,
                "after_features_share": after / whole,
                "facility_share": (distances + medoids) / whole,
            }
        )
        print(found[-1], flush=True)
    return found


def grow_step(name: str, values: tuple[int, ...], rounds: int) -> list[dict[str, float]]:
    found = []
    for value in values:
        tokens = value if name == "tokens" else 128
        shape = Shape(layers=4, hidden=128, intermediate=352, heads=2, vocabulary=value if name != "tokens" else 4096)
        args = argparse.Namespace(rows=8, keep=4, micro_batches=4, tokens=tokens, shortest=0.5)
        figures = measure_time(args, shape, lora=True, rows=8, rounds=rounds)
        found.append({name: value} | {key: statistics.median(held) for key, held in figures.items()})
        print(found[-1], flush=True)
    return found


def grow_gradient(rounds: int) -> list[dict[str, Any]]:
    found = []
    rows = 64
    for name, (d_out, d_in) in GRADIENTS.items():
        features, facts = synthetic(rows, 128, d_out, d_in), facts_of(rows)
        held = sum(part.numel() * 4 for piece in features._pieces for part in piece if isinstance(part, torch.Tensor))
        after = median_of(lambda features=features, facts=facts: pick(features, facts), rounds)
        found.append(
            {
                "model": name,
                "dim": d_out * d_in,
                "seconds": after,
                "held_bytes": held,
                "matrix_bytes": 4 * rows * d_out * d_in,
            }
        )
        print(found[-1], flush=True)
    return found


def exponent(found: list[dict[str, float]], x: str, y: str) -> float:
    """Return the exponent with which `y` grows with `x` between the last two points."""
    a, b = found[-2:]
    return math.log(b[y] / a[y]) / math.log(b[x] / a[x])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # the warning about a single source
    setting = describe_setting("0")
    print(setting)
    pools = grow_pool(args.rounds)
    results = {
        "setting": setting,
        "pool": pools,
        "pool_exponent": exponent(pools, "rows", "after_features_seconds"),
        "facility_exponent": exponent(pools, "rows", "facility_seconds"),
        "gradient": grow_gradient(args.rounds),
        "tokens": grow_step("tokens", LENGTHS, args.rounds),
        "vocabulary": grow_step("vocabulary", VOCABULARIES, args.rounds),
    }
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
