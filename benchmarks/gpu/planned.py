"""The estimates of `colm plan` for the cases of "fast", computed in advance: they take minutes of a CPU and no GPU.

python benchmarks/gpu/planned.py FOLDER        # writes FOLDER/planned.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fast_cases import Case, units

from colm.lab.plan.outlook import Outlook

WAYS = ("pool", "coreset_rows", "coreset_step")


def plan(case: Case) -> dict[str, float]:
    """Return the planned peaks by way, in bytes, and the planning time, in seconds.

    `colm plan` mentions the memory of `reuse_forward` only in a note under its table. Here it is added: the layer
    inputs of the whole pool in the selection, and those of the kept rows in training.
    """
    start = time.perf_counter()
    outlook = Outlook(case.request("cpu" if case.tiny else "cuda"), case.config())
    sizes = (case.micro_batch, case.micro_batches)
    ways: dict[str, Any] = {
        "pool": outlook.pool(*sizes),
        "coreset_rows": outlook.coreset_rows(*sizes),
        "coreset_step": outlook.coreset_step(*sizes, time=False),
    }
    if case.checkpointed:
        row, step = case.tokens * outlook.shapes.layer_inputs, ways["coreset_step"]
        ways["coreset_step"] = step._replace(
            activations=step.activations + case.keep * row, selection=step.selection + case.rows * row
        )
    return {name: ways[name].peak for name in WAYS} | {"seconds": time.perf_counter() - start}


def write(folder: Path, *, tiny: bool) -> Path:
    """Write `planned.json` for all cases and return its path; peaks by the case's name."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with almost nothing to compute, threads would wait for each other
    try:
        found = {name: plan(case) for name, case, profiled in units(tiny=tiny) if not profiled}
    finally:
        torch.set_num_threads(threads)
    path = folder / "planned.json"
    path.write_text(json.dumps({"tiny": tiny, "peaks": found}, indent=1) + "\n", encoding="utf-8")
    return path


def read(folder: Path, *, tiny: bool) -> dict[str, dict[str, float]]:
    """Return the planned peaks by case; empty without a file, or if the file is for the other size."""
    path = folder / "planned.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return dict(held["peaks"]) if held.get("tiny") == tiny else {}


if __name__ == "__main__":
    write(Path(sys.argv[1]), tiny="--tiny" in sys.argv)
