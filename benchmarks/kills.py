"""Kill training runs with SIGKILL, resume them, and compare their output with a run that was never killed.

    python benchmarks/kills.py --kills 50
    python benchmarks/kills.py --passes --sample 100

Half of the kills come at a random time, half at a random file operation in the run's folder: while writing a
checkpoint, a log line or the summary. A run is killed up to three times before it may end. These must agree: the bytes
of the weights, and every line of selection.jsonl and evaluations.jsonl (without seconds).

With --passes the kills come right after a checkpoint instead, at all combinations in kills_in_passes.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from killed import WRITES, differences, outcome


class Whole(NamedTuple):
    """The run that was never killed."""

    outcome: dict[str, Any]
    seconds: float
    writes: int  # file operations in its folder


def write_config(folder: Path, **training: Any) -> Path:
    """Write rows of three sources and the configuration of a short run with dropout, of more than one epoch."""
    rows = []
    for i in range(60):
        name = "adding" if i % 10 < 6 else ("naming" if i % 10 < 9 else "rare")
        text = {"adding": f"{i} + 1 = ", "naming": f"Name number {i}: ", "rare": f"Rare {i}? "}[name]
        rows.append({"source": name, "prompt": text, "completion": str(i + 1)})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": "tiny",
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": ["q_proj", "v_proj"]},
        "data": {"train": str(folder / "rows.jsonl"), "validation_rows": 2, "max_length": 32},
        "training": {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 16,
            "learning_rate": 5e-3,
            "logging_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 4,
            "save_steps": 2,
            "save_total_limit": 2,
            "use_cpu": True,
            **training,
        },
        "output_dir": str(folder / "run"),
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(config: Path, *, resume: bool, kill_at: int = 0, count: Path | None = None) -> int:
    """Train in a forked process, which need not import anything again, and return its process id.

    Args:
        config: the run's configuration.
        resume: continue from the last complete checkpoint.
        kill_at: the file operation in the run's folder before which the process kills itself; 0 for none.
        count: where to store the number of file operations.
    """
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    with config.with_name("output.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    folder, writes = str(config.parent / "run"), 0

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal writes
        touches = (event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR)) or event in WRITES
        if touches and str(details[0]).startswith(folder):
            writes += 1
            if writes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    status = 1
    try:
        from colm.lab.cli import main

        status = main(["train", str(config), *(["--resume"] if resume else [])])
        if count:
            count.write_text(str(writes))
    finally:
        os._exit(status)


def run_whole(folder: Path) -> Whole:
    """Train without a kill."""
    config, began = write_config(folder), time.perf_counter()
    _, status = os.waitpid(start(config, resume=False, count=folder / "writes"), 0)
    if status:
        raise SystemExit((folder / "output.txt").read_text()[-3000:])
    seconds = time.perf_counter() - began
    return Whole(outcome(folder / "run"), seconds, int((folder / "writes").read_text()))


def kill_and_resume(folder: Path, whole: Whole, draw: random.Random, *, kills: int) -> tuple[list[str], list[str]]:
    """Kill one run `kills` times, let it end, and return where the kills hit and what differs from the whole run."""
    from colm.lab.run.lock import LOCK_NAME  # which a killed process leaves behind

    config, hits = write_config(folder), []
    while True:
        resume = any(path.name != LOCK_NAME for path in (folder / "run").glob("*"))
        kill_at = draw.randint(1, whole.writes) if kills and draw.random() < 0.5 else 0
        process = start(config, resume=resume, kill_at=kill_at)
        if kills and not kill_at:
            time.sleep(draw.uniform(0, whole.seconds))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            kills -= 1
            hits.append(describe(folder / "run", "at a file operation" if kill_at else "at a random time"))
        elif status == 0:
            break
        else:
            return hits, ["failed: " + (folder / "output.txt").read_text()[-2000:]]
    return hits, differences(outcome(folder / "run"), whole.outcome)


def describe(folder: Path, how: str) -> str:
    """Describe in which part of its life a run was killed."""
    from colm.trainers.checkpoints import is_complete

    if not (folder / "selection.jsonl").exists():
        return f"{how}, before the first step"
    if (folder / "model.safetensors").exists() or (folder / "adapter_model.safetensors").exists():
        return f"{how}, after training"
    if not all(is_complete(checkpoint) for checkpoint in folder.glob("checkpoint-*")):
        return f"{how}, within a checkpoint"
    return f"{how}, within a step"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--passes", action="store_true", help="kill runs in each of three passes over the data instead")
    parser.add_argument("--sample", type=int, default=0, help="number of cases of --passes to draw (default: all)")
    options = parser.parse_args()
    if options.passes:
        from kills_in_passes import kill_in_passes

        with tempfile.TemporaryDirectory() as scratch:
            kill_in_passes(Path(scratch), sample=options.sample, seed=options.seed)
        return
    draw, hits, failures, runs = random.Random(options.seed), Counter[str](), [], 0
    import colm.lab.run.train  # noqa: F401  imported before the children fork

    with tempfile.TemporaryDirectory() as scratch:
        whole = run_whole(Path(scratch) / "whole")
        print(f"The whole run: {whole.seconds:.1f} s, {whole.writes} file operations.", flush=True)
        while hits.total() < options.kills:
            runs += 1
            found, differing = kill_and_resume(Path(scratch) / str(runs), whole, draw, kills=draw.randint(1, 3))
            hits.update(found)
            failures += [f"run {runs}: {what}" for what in differing]
            print(f"run {runs}: {'; '.join(found)}: {differing or 'the same'}", flush=True)
    print(f"\n{hits.total()} kills of {runs} runs, seed {options.seed}:")
    for where, count in sorted(hits.items()):
        print(f"  {count:3d} {where}")
    print(f"Runs that ended like the one never killed: {runs - len({f.split(':')[0] for f in failures})} of {runs}.")
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    main()
