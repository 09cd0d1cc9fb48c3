"""Train with true labels, with clusters and without labels, and compare the final losses by true source.

    python benchmarks/clustering_runs.py reasoning            # finished runs are skipped
    python benchmarks/clustering_runs.py real --seeds 0

Needs the output of `experiments/prepare.py` for the mixture. Each run's figures go to docs/results/runs/clusters.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "experiments"))
sys.path.insert(0, str(Path(__file__).parent))
from keep import hash_model
from setting import describe_setting

from colm.lab.data.read import read_rows
from colm.lab.run.prepare import prepare_data
from colm.lab.run.settings import load_settings, resolve_settings
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.labelling import label_rows
from colm.lab.sources.rows import Rows
from colm.lab.study.methods import method_settings
from colm.lab.study.runs import run_one
from colm.step.record import FILE_NAME, SUMMARY_NAME, StepLog
from colm.step.sources import count_sources, find_small_sources

HERE = Path(__file__).parent
KEPT = HERE.parent / "docs" / "results" / "runs" / "clusters"
MIXTURES = ("reasoning", "real")
LABELS: dict[str, int | str | None] = {
    "true": None,
    "clusters-8": 8,
    "clusters-16": 16,
    "clusters-auto": "auto",
    "none": None,
}
METHODS = ("control", "colm")
STEPS, SEEDS, CLUSTER_SEED = 60, (0, 1, 2), 0


def write_training_data(base: Any, folder: Path, kind: str) -> Path:
    """Write the mixture with one kind of labels, and return its path."""
    rows = read_rows(base.data.train)
    if kind == "true":
        names = rows["source"][:]
    elif kind == "none":
        names = ["all"] * len(rows)
    else:
        config = ClusterConfig(clusters=LABELS[kind] or "auto", seed=CLUSTER_SEED)
        names = label_rows(Rows([rows]), config, folder / f"{kind}.parquet").names
    path = folder / f"{kind}.jsonl"
    if not path.exists():
        rows.remove_columns("source").add_column("source", names).to_json(path)
    return path


def training_values(base: Any, path: Path) -> dict[str, Any]:
    """Return the settings of a run on the mixture at `path`."""
    return {**base.values, "data": {**base.values["data"], "train": str(path), "seed": 0}}


def numbered_sources(base: Any, path: Path) -> list[str]:
    """Return the label of each row as a run numbers them: without rows dropped by tokenization."""
    names: list[str] = prepare_data(resolve_settings(training_values(base, path))).train["source"][:]
    return names


def share_kept_of_small(folder: Path, true: Sequence[str], small: frozenset[str]) -> float:
    """Return the share of the truly small sources' pool rows that were kept."""
    pooled = kept = 0
    for line in StepLog(folder / FILE_NAME).read():
        for counter, key in ((0, "pool"), (1, "kept")):
            count = sum(true[row] in small for rows in line[key].values() for row in rows)
            pooled, kept = (pooled + count, kept) if counter == 0 else (pooled, kept + count)
    return kept / pooled


def figures(folder: Path, true: Sequence[str]) -> dict[str, Any]:
    """Return the final losses by true source, and the share of small sources' rows that was kept."""
    summary = json.loads((folder / SUMMARY_NAME).read_text(encoding="utf-8"))
    small = find_small_sources(count_sources(true, "source"), "auto")
    losses = {name: source["eval_loss_after"] for name, source in summary["sources"].items() if name in set(true)}
    groups = {"macro": losses, "small": small, "big": set(losses) - small}
    means = {key: sum(losses[name] for name in names) / len(names) for key, names in groups.items()}
    return means | {"losses": losses, "small_kept": share_kept_of_small(folder, true, small)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mixture", choices=MIXTURES)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--labels", nargs="+", choices=LABELS, default=list(LABELS))
    arguments = parser.parse_args()
    base = load_settings(str(HERE / "experiments" / f"{arguments.mixture}.yaml"), [])
    folder = Path(base.output_dir).parent / "clusters"
    held_in = KEPT / arguments.mixture
    for made in (folder, held_in):
        made.mkdir(parents=True, exist_ok=True)
    model = hash_model(Path(base.model))
    true = numbered_sources(base, write_training_data(base, folder, "true"))
    for seed in arguments.seeds:  # so that pairs are complete early
        for kind in arguments.labels:
            path = write_training_data(base, folder, kind)
            for method in METHODS:
                out = held_in / f"{kind}.{method}.seed-{seed}.json"
                if out.exists():
                    continue
                values = method_settings(method, {**training_values(base, path), "seed": seed})
                values["selection"]["seed"] = seed
                values["training"] = {**values["training"], "max_steps": STEPS, "eval_strategy": "no"}
                run = folder / f"{kind}-{method}-{seed}"
                run_one(run, resolve_settings({**values, "output_dir": str(run)}).values, "")
                held = {"labels": kind, "method": method, "seed": seed, "steps": STEPS, "model": model}
                held |= figures(run, true) | {"setting": describe_setting(str(seed))}
                out.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
                shutil.rmtree(run)
                print(
                    out.name, {key: round(held[key], 4) for key in ("macro", "small", "big", "small_kept")}, flush=True
                )


if __name__ == "__main__":
    main()
