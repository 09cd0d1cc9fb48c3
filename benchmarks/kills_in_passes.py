"""Kill runs right after a checkpoint, at each place of three passes over the data. Started by kills.py --passes.

All combinations of row order, mixing, pass, place in the pass, data loader workers, end of passes, and one or two
processes. SIGKILL ends the first rank at its first file operation after the checkpoint.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from killed import WRITES, differences, outcome

FACTORS: dict[str, list[Any]] = {
    "data": ["random", "grouped", "stream"],
    "mixing": ["plain", "weights", "cap"],
    "workers": [0, 2],
    "rows": [16, 17],  # per process: the last pool of a pass is full, or has one row
    "processes": [1, 2],
    "epoch": [1, 2, 3],
    "killed": ["first", "middle", "end"],
}
WHOLE = 5
"""Number of factors that define the run; the others say where it is killed."""

Case = tuple[Any, ...]


def all_cases() -> list[Case]:
    """Return all combinations; a stream cannot be capped."""
    return [case for case in product(*FACTORS.values()) if case[:2] != ("stream", "cap")]


def write_run(folder: Path, case: Case) -> Path:
    """Write rows and the configuration of a run of three passes and two steps."""
    values = dict(zip(FACTORS, case, strict=False))
    count = values["rows"] + 16 * (values["processes"] - 1)
    capped = 8 if values["mixing"] == "cap" else 0
    draw = random.Random(0)
    rows = [
        {"source": "big" if i % 4 else "small", "prompt": f"{i}: {'x' * draw.randint(1, 9)}", "completion": f"{i}"}
        for i in range(count + capped)
    ]
    folder.mkdir(parents=True)
    for name in ("big", "small"):
        held = [row for row in rows if row["source"] == name]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    data: dict[str, Any] = {"max_length": 32}
    if capped:
        data["cap"] = {"big": sum(row["source"] == "big" for row in rows) - capped}
    if values["mixing"] == "weights":
        data["weights"] = {"big": 0.6, "small": 0.4}
    if values["data"] == "stream":
        data |= {"streaming": True, "window": 8}
    config = {
        "model": "tiny",
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.2, "target_modules": ["q_proj", "v_proj"]},
        "data": data,
        "mixture": [{"path": str(folder / f"{name}.jsonl"), "source": name} for name in ("big", "small")],
        "training": {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 23 if values["data"] == "stream" and values["mixing"] == "weights" else 17,
            "learning_rate": 5e-3,
            "save_steps": 1,
            "use_cpu": True,
            "dataloader_num_workers": values["workers"],
            "train_sampling_strategy": "group_by_length" if values["data"] == "grouped" else "random",
        },
        "output_dir": str(folder / "run"),
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


def train(config: Path, processes: int, *, resume: bool = False, kill_behind: str = "") -> int:
    """Train in forked processes, and return the first one's status, negative if a signal ended it.

    Args:
        config: the run's configuration.
        processes: number of processes.
        resume: continue from the last complete checkpoint.
        kill_behind: the name of a checkpoint. Once it is complete, the first process kills itself, and then all die.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    children = []
    for rank in range(processes):
        child = os.fork()
        if not child:
            _be_rank(config, rank, processes, port, resume=resume, kill_behind=kill_behind)
        children.append(child)
    _, status = os.waitpid(children[0], 0)
    for child in children[1:]:
        if status:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _be_rank(config: Path, rank: int, world: int, port: int, *, resume: bool, kill_behind: str) -> None:
    with config.with_name(f"output-{rank}.txt").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if world > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in names.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "1"}
    marker, armed = f"{kill_behind}/coreset_complete.json", False

    def watch(event: str, details: tuple[Any, ...]) -> None:
        nonlocal armed
        if armed and (event in WRITES or (event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR))):
            os.kill(os.getpid(), signal.SIGKILL)
        armed = armed or (event == "os.rename" and str(details[1]).endswith(marker))

    if kill_behind and rank == 0:
        sys.addaudithook(watch)
    status = 1
    try:
        from colm.lab.cli import main

        torch.set_num_threads(1)
        status = main(["train", str(config), *(["--resume"] if resume else [])])
    finally:
        os._exit(status)


def checkpoints(run: Path) -> dict[tuple[int, str], str]:
    """Return the checkpoint for each pass, counted from 1, and place in the pass."""
    places: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for path in run.glob("checkpoint-*"):
        place = torch.load(path / "coreset_state.pt", weights_only=True)["pass"]
        places[place["epoch"] + 1].append((place["steps"], path.name))
    found = {}
    for epoch, held in places.items():
        names = [name for _, name in sorted(held)]
        found |= {(epoch, "first"): names[0], (epoch, "middle"): names[len(names) // 2], (epoch, "end"): names[-1]}
    return found


def kill_in_passes(scratch: Path, *, sample: int, seed: int) -> None:
    """Run all combinations, or a sample, and print how many runs ended like the one that was never killed."""
    import colm.lab.run.train  # noqa: F401  imported before the children fork

    cases, began = all_cases(), time.perf_counter()
    if sample:
        cases = sorted(random.Random(seed).sample(cases, min(sample, len(cases))), key=all_cases().index)
    tried, equal = Counter[tuple[str, Any]](), Counter[tuple[str, Any]]()
    failures: list[str] = []
    last: Case = ()
    for number, case in enumerate(cases):
        if case[:WHOLE] != last:
            last = case[:WHOLE]
            shutil.rmtree(scratch / "whole", ignore_errors=True)
            if train(write_run(scratch / "whole", case), case[WHOLE - 1]):
                raise SystemExit((scratch / "whole" / "output-0.txt").read_text()[-3000:])
            whole, behind = outcome(scratch / "whole" / "run"), checkpoints(scratch / "whole" / "run")
        differing = _kill_once(scratch / "killed", case, whole, behind[case[WHOLE:]])
        levels = list(zip(FACTORS, case, strict=True))
        tried.update(levels)
        equal.update([] if differing else levels)
        failures += [f"{case}: {what}" for what in differing]
        print(f"{number + 1} of {len(cases)}: {' '.join(map(str, case))}: {differing or 'the same'}", flush=True)
    print(f"\n{'factor':<10} {'level':<8} {'tried':>5} {'equal':>5}")
    for name, levels in FACTORS.items():
        for level in levels:
            print(f"{name:<10} {level!s:<8} {tried[name, level]:>5} {equal[name, level]:>5}")
    runs = len(cases)
    print(
        f"Runs that ended like the one never killed: {runs - len({f.split(':')[0] for f in failures})} of {runs}",
        end="",
    )
    print(f" (of {len(all_cases())} combinations), {time.perf_counter() - began:.0f} s.")
    if failures:
        raise SystemExit("\n".join(failures))


def _kill_once(folder: Path, case: Case, whole: dict[str, Any], checkpoint: str) -> list[str]:
    shutil.rmtree(folder, ignore_errors=True)
    config, processes = write_run(folder, case), case[WHOLE - 1]
    status = train(config, processes, kill_behind=checkpoint)
    if status != -signal.SIGKILL:
        return [f"was not killed, but ended with {status}: {(folder / 'output-0.txt').read_text()[-1000:]}"]
    if train(config, processes, resume=True):
        return ["failed: " + (folder / "output-0.txt").read_text()[-2000:]]
    return differences(outcome(folder / "run"), whole)
