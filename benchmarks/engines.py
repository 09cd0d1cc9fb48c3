"""Which features work in which engine: FSDP2, transformers' own FSDP2, and DeepSpeed's ZeRO-1, 2 and 3.

    make .venv/engines/installed        # DeepSpeed
    python benchmarks/engines.py        # docs/results/engines.md, about ten minutes on two cores

Runs the cases of the tests in gloo processes, and compares each with DistributedDataParallel on the same data: the kept
rows of every step, and the weights at the end. What was run stays in runs/engines, so an interrupted command goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from setting import describe_setting

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import engines_on_ranks  # noqa: E402
from tests.support.engines import DEEPSPEED  # noqa: E402
from tests.support.engines_on_ranks import CASES, distance, load, path_of  # noqa: E402
from tests.support.processes import run_to_end, torchrun  # noqa: E402

RUNS = ROOT / "runs" / "engines"
RESULTS = ROOT / "docs" / "results" / "engines.md"
QUANTISERS = Path(sys.prefix) / "quantisers"
LAUNCHES = {  # engines of one kind -> processes
    ("ddp", "native"): 2,
    ("fsdp2",): 2,
    ("zero1", "zero2", "zero3"): 2,
    ("ddp4",): 4,
    ("hsdp",): 4,
}
ENGINES = {
    "fsdp2": "FSDP2",
    "hsdp": "2 x 2 HSDP",
    "native": "FSDP2 of transformers",
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "zero3": "ZeRO-3",
}
FSDP_ONLY = [case for case, settings in CASES.items() if "fsdp2" in settings]
LOADED = ("qlora", "lora", "lora reuse", "saved lora", "shards of lora", "lora bfloat16", "trl", "trl without features")
"""Cases that change the model before training, which transformers' own FSDP2 has split at loading."""


def runs_in(engine: str, case: str) -> bool:
    """Return whether a case is one of the engine's."""
    if engine in ("ddp4", "hsdp"):
        return case in ("exact", "lora", "reuse", "saved")
    if engine == "native":
        return case not in (*FSDP_ONLY, *LOADED)
    in_bfloat16 = "bfloat16" in case and engine.startswith("zero")  # DeepSpeed refuses it on a CPU
    return engine in ("ddp", "fsdp2") or not (case in FSDP_ONLY or case == "qlora" or in_bfloat16)


def launch(folder: Path, kind: tuple[str, ...], world: int) -> None:
    """Run all cases of the engines of one kind."""
    wanted = [(engine, case) for engine in kind for case in CASES if runs_in(engine, case)]
    cases = [f"{engine}/{case}" for engine, case in wanted if not path_of(folder, engine, case).exists()]
    if not cases:
        return
    extra = str(DEEPSPEED if "zero2" in kind else QUANTISERS)
    command = [*torchrun(world), str(engines_on_ranks.__file__), str(folder), *cases]
    run_to_end(command, seconds=None, HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="", PYTHONPATH=extra)


def cell(folder: Path, engine: str, case: str, notes: list[str]) -> str:
    """Return what a case gave in an engine; a refusal becomes a numbered note."""
    if not runs_in(engine, case):
        return ""
    ours, theirs = load(folder, "ddp4" if engine == "hsdp" else "ddp", case), load(folder, engine, case)
    if "error" in theirs:
        why = theirs["error"].partition(": ")[2]
        if why not in notes:
            notes.append(why)
        return f"refused ({notes.index(why) + 1})"
    if "replayed" in theirs:
        return f"{distance(theirs['weights'], theirs['replayed']):.0e} from no selection"
    same = sum(a["kept"] == b["kept"] for a, b in zip(ours["lines"], theirs["lines"], strict=True))
    total = len(ours["lines"])
    resumed = ", resumes" if "resumed" in theirs and distance(theirs["weights"], theirs["resumed"]) == 0 else ""
    picks = "" if same == total else f"{same} of {total}, "
    return f"{picks}{distance(ours['weights'], theirs['weights']):.0e}{resumed}"


def main() -> None:
    torch.set_num_threads(1)
    for kind, world in LAUNCHES.items():
        launch(RUNS, kind, world)
    notes: list[str] = []
    lines = [f"| {case} | {' | '.join(cell(RUNS, engine, case, notes) for engine in ENGINES)} |" for case in CASES]
    head = [f"| case | {' | '.join(ENGINES.values())} |", f"| --- |{' --- |' * len(ENGINES)}"]
    told = [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    RESULTS.write_text(PAGE.format(setting=describe_setting("0"), table="\n".join(head + lines), notes="\n".join(told)))
    print(RESULTS.read_text())


PAGE = """# Engines: what works with sharded weights

`python benchmarks/engines.py`; {setting}

Two gloo processes (HSDP: four, two copies of two shards), a tiny model, 7 steps with a short last pool, in the Trainer
(`trl`: in TRL's), compared with DistributedDataParallel on the same data. A figure means that all steps kept the same
rows; it is the largest relative difference of a weight at the end. It grows from rounding where Adam divides by small
moments. "Resumes": the weights of a run that was cut off and resumed are the same bit for bit. In bfloat16 an engine
rounds in other places than DistributedDataParallel, so we compare those cases with the same rows trained in the same
engine without a selection pass. An empty cell is a setting that the engine does not have, that does not run on a CPU,
or that was not run.

{table}

Refused, with this message:

{notes}

In every engine the noise scale is not measured (`noise`: training is unaffected, and the log says so). Not run: NCCL,
several machines, offloading to the CPU, DeepSpeed's own optimizers.
"""


if __name__ == "__main__":
    main()
