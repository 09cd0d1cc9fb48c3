"""Synthetic run folders in the format of `colm train`: the numbers follow formulas, with seeded noise."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml
from tests.support.files import write_lines

SIZES = {"algebra": 4200, "code": 2600, "dialogue": 1900, "history": 160, "poems": 60}
MANY = {f"source-{chr(97 + i)}-of-a-long-name": round(9000 * 0.62**i) + 20 for i in range(14)}


def find_small(sizes: dict[str, int]) -> list[str]:
    return sorted(name for name, size in sizes.items() if size * len(sizes) < sum(sizes.values()))


def make_line(step: int, sizes: dict[str, int], draw: random.Random, **changes: Any) -> dict[str, Any]:
    """One line of selection.jsonl: a pool of 64 rows, all rows of small sources, and half of the rest."""
    small = find_small(sizes)
    names = draw.choices(list(sizes), weights=list(sizes.values()), k=64)
    pool = {name: [draw.randrange(sizes[name]) for other in names if other == name] for name in sorted(set(names))}
    kept = {name: rows if name in small else rows[: len(rows) // 2] for name, rows in pool.items()}
    kept = {name: rows for name, rows in kept.items() if rows}
    if "kept_count" in changes:  # of small sources first
        kept = take(pool, sorted(pool, key=lambda name: name not in small), changes["kept_count"])
    if "pool_count" in changes:
        pool = kept
    return {
        "step": step,
        "pool_count": sum(map(len, pool.values())),
        "kept_count": sum(map(len, kept.values())),
        "small_kept": sum(len(rows) for name, rows in kept.items() if name in small),
        "unlabelled": 0,
        "nonfinite": 0,
        "seconds": 0.2 + 0.05 * draw.random(),
        "step_seconds": 0.6 + 0.1 * draw.random(),
        "match": 0.87 + 0.05 * draw.random(),
        "match_random": 0.75 + 0.05 * draw.random(),
        "pool": pool,
        "kept": kept,
        **changes,
    }


def take(pool: dict[str, list[int]], names: list[str], count: int) -> dict[str, list[int]]:
    taken: dict[str, list[int]] = {}
    for name in names:
        taken[name] = pool[name][: count - sum(map(len, taken.values()))]
    return {name: rows for name, rows in taken.items() if rows}


def make_losses(step: int, sizes: dict[str, int], *, gain: float = 0.0, draw: random.Random) -> dict[str, float]:
    return {
        name: 2.0 + 0.1 * i + 2.0 * math.exp(-step / (20 + 4 * i)) - gain * min(1.0, step / 60) + 0.01 * draw.random()
        for i, name in enumerate(sizes)
    }


def write_run(
    folder: Path,
    *,
    steps: int = 60,
    sizes: dict[str, int] = SIZES,
    seed: int = 0,
    gain: float = 0.0,
    selection: dict[str, Any] | None = None,
    line: dict[str, Any] | None = None,
    losses: dict[str, list[float]] | None = None,
    memory: int | None = 3 * 2**30,
    finished: bool = True,
    seconds: float = 0.65,
    rows: int | None = None,
) -> Path:
    """Write a run's folder and return it.

    Args:
        folder: created by this function.
        steps: optimizer steps; evaluated before the first step and after each tenth.
        sizes: training rows by source.
        seed: seed of the noise.
        gain: how much lower the final losses are than without gain.
        selection: changes to the section of config.yaml.
        line: changes to every line of selection.jsonl.
        losses: source -> its eleven losses, instead of the formula's.
        memory: peak, bytes.
        finished: with a summary.
        seconds: of each step.
        rows: kept in each step, for the evaluations' count of examples.
    """
    draw = random.Random(seed)
    folder.mkdir(parents=True)
    settings = {"keep": 0.5, "features": "exact", "small_sources": "auto", "seed": seed, **(selection or {})}
    config = {
        "model": "demo",
        "lora": {"r": 16},
        "data": {"train": "mixture.jsonl", "max_length": 512},
        "mixture": [],
        "selection": settings,
        "training": {"max_steps": steps, "learning_rate": 2e-5},
        "output_dir": str(folder),
        "seed": seed,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    lines = [make_line(step, sizes, draw, **(line or {})) for step in range(steps)]
    write_lines(folder / "selection.jsonl", lines)
    kept = rows or 37
    evaluations = []
    for i in range(11):
        step = round(steps * i / 10)
        found = make_losses(step, sizes, gain=gain, draw=draw) | {
            name: values[i] for name, values in (losses or {}).items()
        }
        evaluations.append({"step": step, "rows": kept * step, "seconds": seconds * step, "losses": found})
    write_lines(folder / "evaluations.jsonl", evaluations)
    training = [{"step": step, "loss": 2 + 2 * math.exp(-step / 20)} for step in range(5, steps + 1, 5)]
    write_lines(folder / "losses.jsonl", training)
    if not finished:
        return folder
    sources = {
        name: {
            "rows": size,
            "pooled": sum(len(each["pool"].get(name, [])) for each in lines),
            "kept": sum(len(each["kept"].get(name, [])) for each in lines),
            "eval_loss_before": evaluations[0]["losses"][name],
            "eval_loss_after": evaluations[-1]["losses"][name],
        }
        for name, size in sizes.items()
    }
    summary = {
        "steps": steps,
        "seconds": seconds * steps,
        "selection_seconds": sum(each["seconds"] for each in lines),
        "eval_loss_before": 4.1,
        "eval_loss_after": 2.2,
        "small_sources": find_small(sizes),
        "sources": sources,
        "peak_memory_bytes": memory,
        "memory_kind": "process",
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2))
    big = next(iter(sizes))
    examples = {
        kind: [
            {
                "source": big,
                "index": 17 * i,
                "pooled": 9,
                "kept": times,
                "text": f"Question {i}: what is {i} + {i}?\n" * 4,
            }
            for i in range(5)
        ]
        for kind, times in (("most_kept", 9), ("least_kept", 0))
    }
    (folder / "examples.json").write_text(json.dumps(examples))
    return folder


def write_comparison_folder(
    folder: Path, *, methods: dict[str, float], seeds: int = 3, sizes: dict[str, int] = SIZES, steps: int = 60
) -> Path:
    """Write compare.json and its run folders; `methods` maps a method to its gain, and "random" is one of them."""
    small = find_small(sizes)
    found: dict[str, Any] = {}
    for place, (method, gain) in enumerate(methods.items()):
        features = "none" if method.partition("+")[0] in ("random", "control", "random-n") else "exact"
        for seed in range(seeds):
            run = write_run(
                folder / method / f"seed-{seed}",
                sizes=sizes,
                seed=100 * place + seed,
                gain=gain,
                steps=steps,
                selection={"features": features},
                line={"seconds": 0.001, "match": None, "match_random": None} if features == "none" else None,
                seconds=0.4 if features == "none" else 0.65,
                rows=64 if method == "random-n" else 32,
            )
            summary = json.loads((run / "summary.json").read_text())
            losses = {name: source["eval_loss_after"] for name, source in summary["sources"].items()}
            total = sum(sizes.values())

            def mean(names: list[str], losses: dict[str, float] = losses) -> float:
                return sum(losses[name] for name in names) / len(names)

            found.setdefault(method, {})[str(seed)] = {
                "macro": mean(list(sizes)),
                "micro": sum(losses[name] * size for name, size in sizes.items()) / total,
                "small": mean(small),
                "big": mean([name for name in sizes if name not in small]),
                **{key: summary[key] for key in ("steps", "seconds", "selection_seconds", "peak_memory_bytes")},
            }
    (folder / "compare.json").write_text(json.dumps(found, indent=2))
    return folder
