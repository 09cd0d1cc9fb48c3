"""How fast `colm` starts: CPU seconds of commands that do little, as multiples of `import torch` in the same run.

    python benchmarks/start.py
    python benchmarks/start.py --against COMMIT --page

Each case is a process of its own; a number is the median of its user and system seconds over --repeats rounds, and the
spread is the lowest and the highest. --against measures that commit's code too, in the same rounds; --page writes
docs/results/start.md. At last `colm compare` makes four runs as forks, and again in fresh processes: seconds by the
clock as multiples of the runs' own steps, and whether the runs are the same.
"""

from __future__ import annotations

import argparse
import compileall
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from killed import differences, outcome
from same_runs import checkout
from setting import describe_setting

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "start.md"
BASE = "import torch"
COMMANDS = ("train", "sources", "plan", "compare", "replay", "report", "eval", "schema")
CONFIG = "model: tiny\noutput_dir: unused\ndata: {train: demo}\n"
FIRST_STEP = """
import os, sys
from transformers.trainer_callback import CallbackHandler
CallbackHandler.on_step_begin = lambda *_, **__: os._exit(0)
from colm.lab.cli import main
main(sys.argv[1:])
"""
"""Train up to the first step."""


def list_cases(folder: Path) -> dict[str, tuple[list[str], int]]:
    """Return name -> arguments of Python and expected exit status, with files in a folder."""
    sys.path.insert(0, str(ROOT))
    from tests.support.reports import write_run

    config, run = folder / "run.yaml", write_run(folder / "run", steps=40)
    config.write_text(CONFIG)

    def colm(*words: str, status: int = 0) -> tuple[list[str], int]:
        return ["-m", "colm", *words], status

    train = [str(ROOT / "examples" / "tiny.yaml"), "--overwrite", f"output_dir={folder / 'tiny'}"]
    return {
        BASE: (["-c", BASE], 0),
        "import colm": (["-c", "import colm"], 0),
        "colm --version": colm("--version"),
        "colm --help": colm("--help"),
        **{f"colm {name} --help": colm(name, "--help") for name in COMMANDS},
        "train, no such file": colm("train", str(folder / "gone.yaml"), status=2),
        "train selection.kep=0.3": colm("train", str(config), "selection.kep=0.3", status=2),
        "train selection.keep=7": colm("train", str(config), "selection.keep=7", status=2),
        "train training.max_step=3": colm("train", str(config), "training.max_step=3", status=2),
        "train training.max_steps=-5": colm("train", str(config), "training.max_steps=-5", status=2),
        "train training.optim=adamm": colm("train", str(config), "training.optim=adamm", status=2),
        "train lora.r=-1": colm("train", str(config), "lora.r=-1", status=2),
        "train lora.rr=1": colm("train", str(config), "lora.rr=1", status=2),
        "report of a finished run": colm("report", str(run)),
        "train examples/tiny.yaml to the first step": (["-c", FIRST_STEP, "train", *train], 0),
    }


def cpu_seconds(arguments: list[str], source: Path, expected: int, folder: Path) -> float:
    """Return the user and system seconds of a Python process and its children; NaN with another exit status."""
    environment = {**os.environ, "PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = folder / "log"
    for _ in range(3):  # again if a signal from outside ended it
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=folder, env=environment, stdout=out, stderr=out
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode == expected:
            return usage.ru_utime + usage.ru_stime
        if process.returncode >= 0:
            break
    print(f"{arguments} ended with {process.returncode}:\n{log.read_text()[-2000:]}", file=sys.stderr)
    return math.nan


def measure(sources: dict[str, Path], repeats: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Return code -> case -> CPU seconds; codes and cases take turns, so that a slow minute slows them all."""
    cases = list_cases(folder)
    found: dict[str, dict[str, list[float]]] = {code: {name: [] for name in cases} for code in sources}
    for source in sources.values():
        compileall.compile_dir(source, quiet=1)
    for number in range(repeats):
        for name, (arguments, expected) in cases.items():
            for code, source in sources.items():
                found[code][name].append(cpu_seconds(arguments, source, expected, folder))
        print(f"round {number + 1} of {repeats}", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Return a Markdown table: CPU seconds over the median of `import torch`, with the lowest and the highest."""
    base = statistics.median(took for cases in found.values() for took in cases[BASE])
    lines = [
        f"`import torch` takes {base:.2f} s of CPU (median). Multiples of it, with the lowest and the highest:",
        "",
        "| case | " + " | ".join(f"{code} | range" for code in found) + " |",
        "| --- |" + " ---: | --- |" * len(found),
    ]
    for name in next(iter(found.values())):
        cells = []
        for cases in found.values():
            ratios = [took / base for took in cases[name]]
            known = f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
            cells.append("- | " if any(map(math.isnan, ratios)) else known)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compare(folder: Path, launcher: str) -> tuple[float, float, dict[str, Any]]:
    """Return seconds of a comparison of four runs, seconds of their steps, and by run what must not differ."""
    config, out = ROOT / "examples" / "tiny.yaml", folder / f"compared{len(launcher)}"
    words = [*("compare", config), "--methods", "random", "colm", *("--seeds", "0", "1"), f"output_dir={out}"]
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "colm", "-q", *map(str, words), "--launcher", launcher],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        check=True,
        capture_output=True,
    )
    took, steps, runs = time.perf_counter() - began, 0.0, {}
    for path in sorted(out.glob("*/*/summary.json")):
        summary = json.loads(path.read_text())
        steps += summary["seconds"]
        runs[str(path.parent.relative_to(out))] = (outcome(path.parent), summary["peak_memory_bytes"])
    return took, steps, runs


def compare_both(folder: Path) -> str:
    """Return Markdown lines: `colm compare` with forks, and with fresh processes."""
    found = {name: compare(folder, launcher) for name, launcher in (("forks", ""), ("fresh", sys.executable))}
    lines = [f"| {name} | {took:.0f} | {steps:.0f} | {took / steps:.2f} |" for name, (took, steps, _) in found.items()]
    (_, _, forks), (_, _, fresh) = found.values()
    same = sum(not differences(forks[run][0], fresh[run][0]) for run in fresh)
    memory = [forks[run][1] / fresh[run][1] for run in fresh]
    return "\n".join(
        [
            "`colm compare examples/tiny.yaml --methods random colm --seeds 0 1`, by the clock:",
            "",
            "| the runs are | seconds | of them the runs' steps | ratio |",
            "| --- | ---: | ---: | ---: |",
            *lines,
            "",
            f"{same} of {len(fresh)} runs have the same weights and records; peak memory of a fork is "
            f"{min(memory):.2f} to {max(memory):.2f} of a fresh process's.",
        ]
    )


def main() -> None:
    """Measure, print the table, and write the page where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", help="also measure the code of this commit")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sources = {"now": ROOT / "src"}
        if options.against:
            sources = {options.against: stack.enter_context(checkout(options.against)) / "src", **sources}
        text = table(measure(sources, options.repeats, folder)) + "\n\n" + compare_both(folder)
    print(text)
    if options.page:
        command = "python benchmarks/start.py" + (f" --against {options.against}" if options.against else "")
        setting = f"`{command}`; {describe_setting('none')}; {options.repeats} rounds."
        PAGE.write_text(f"# How fast colm starts\n\n{setting}\n\n{text}\n")


if __name__ == "__main__":
    main()
