"""Check that a change of the code leaves short training runs as they were, bit for bit.

    python benchmarks/same_runs.py --out after.json
    python benchmarks/same_runs.py --against 7f229db
    python benchmarks/same_runs.py --against before.json --cases colm/1 matched/2

Each case is a method on one process or on two. Its outcome is the SHA-256 of selection.jsonl without times and of the
weights. The code is that of this checkout; --against runs a commit's too, or reads what --out wrote, prints one line a
case, and exits with 1 if any outcome differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "step_seconds")
REUSE = ("selection.reuse_forward=true", "training.gradient_checkpointing=true")
METHODS = {
    "colm": (),
    "colm-spsa": ("selection.preset=colm-spsa",),
    "matched": ("selection.preset=matched",),
    "control": ("selection.preset=control",),
    "reuse": REUSE,
}
CASES = [f"{method}/{processes}" for method in METHODS for processes in (1, 2)]
QUIET = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
Outcome = dict[str, str]


def train(tree: Path, case: str, steps: int) -> Outcome:
    """Train one case with the code of `tree` and return the digests of what it leaves."""
    method, processes = case.split("/")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes] if processes != "1" else []
    with tempfile.TemporaryDirectory() as folder:
        options = [f"output_dir={folder}/run", f"training.max_steps={steps}", *METHODS[method]]
        settings = tree / "src" / "colm" / "lab" / "data" / "settings.py"
        if settings.exists() and "chat_template" in settings.read_text():
            options.append("data.chat_template=false")  # as commits without the setting do
        command = [sys.executable, *launch, "-m", "colm", "train", str(ROOT / "examples" / "tiny.yaml"), *options]
        environment = os.environ | QUIET | {"PYTHONPATH": str(tree / "src")}
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{case} failed with the code of {tree}:\n{done.stderr[-3000:]}")
        return digests(Path(folder) / "run")


def digests(run: Path) -> Outcome:
    """Return the SHA-256 of a run's record without times, and of its weights."""
    lines = [json.loads(line) for line in (run / "selection.jsonl").read_text().splitlines()]
    timeless = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    weights = b"".join(path.read_bytes() for path in sorted(run.glob("*.safetensors")))
    return {
        "record": hashlib.sha256(json.dumps(timeless).encode()).hexdigest(),
        "weights": hashlib.sha256(weights).hexdigest(),
    }


def train_all(tree: Path, cases: list[str], steps: int) -> dict[str, Outcome]:
    """Train every case with the code of `tree`."""
    return {case: train(tree, case, steps) for case in cases}


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Yield a folder with the files of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def main() -> int:
    """Train the cases and compare them where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="a commit, or a file that --out wrote")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES, metavar="METHOD/PROCESSES")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path, help="write the outcomes of this checkout there, as JSON")
    options = parser.parse_args()
    ours = train_all(ROOT, options.cases, options.steps)
    if options.out:
        options.out.write_text(json.dumps(ours, indent=1) + "\n")
    if options.against is None:
        print(json.dumps(ours, indent=1))
        return 0
    if options.against.endswith(".json"):
        theirs = json.loads(Path(options.against).read_text())
    else:
        with checkout(options.against) as tree:
            theirs = train_all(tree, options.cases, options.steps)
    for case in options.cases:
        differing = [what for what, digest in ours[case].items() if theirs[case][what] != digest]
        print(f"{case}: {'same' if not differing else 'another ' + ' and '.join(differing)}")
    return int(any(ours[case] != theirs[case] for case in options.cases))


if __name__ == "__main__":
    sys.exit(main())
