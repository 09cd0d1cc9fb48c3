"""Write the page of results.

python benchmarks/gpu/page.py RESULTS... --out docs/results/gpu.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import fast_page
import helps_page
import right_page
from cells import RED, table
from figures import read_lines, standing
from run import PARTS, RUNS

SECTIONS = {"right": right_page, "fast": fast_page, "helps": helps_page}
MARKS = {"done": "done", "unfinished": "has units left", "no time": "not begun: no time"}


def write_page(results: list[Path]) -> str:
    """Return the page in Markdown: slices and machines, parts and faults, then one section per part.

    Args:
        results: folders of the slices, the earliest first.
    """
    notes = _gather(results, RUNS)
    slices = [line for line in notes if not line["part"]]
    rehearsed = any(line["rehearsal"] for line in slices)
    lines = ["# On a CPU: the rehearsal of the GPU suite" if rehearsed else "# On a GPU", ""]
    if rehearsed:
        lines += ["Sizes are tiny: the figures show only that each part runs, and what the page looks like.", ""]
    lines += ["`python benchmarks/gpu/run.py`, then `python benchmarks/gpu/page.py`; see benchmarks/gpu/README.md.", ""]
    lines += _table(["slice (UTC)", "device", "versions", "commit", "without"], map(_describe_slice, slices))
    runs = [line for line in notes if line["part"]]
    rows = [(line["slice"], line["part"], _mark(line["status"]), f"{line['seconds']:.0f}") for line in runs]
    lines += _table(["slice", "part", "how it ended", "seconds"], rows)
    figures = {part.name: standing(_gather(results, f"{part.name}.jsonl")) for part in PARTS}
    lines += _write_faults(runs, figures)
    for name, section in SECTIONS.items():
        if figures[name]:
            lines += [section.write_section(figures[name]).strip(), ""]
    return "\n".join(lines)


def _gather(results: list[Path], name: str) -> list[dict[str, Any]]:
    """Return a file's lines from all folders, without duplicates: a later slice may contain those of an earlier one."""
    lines = [line for folder in results for line in read_lines(folder / name)]
    return list({json.dumps(line): line for line in lines}.values())


def _write_faults(runs: list[dict[str, Any]], figures: dict[str, list[dict[str, Any]]]) -> list[str]:
    found = [
        f"{RED} {part}, {line['unit']}: {line['fault']}"
        for part in figures
        for line in figures[part]
        if "fault" in line
    ]
    last = {line["part"]: line for line in runs}
    found += [
        f"{RED} {name}: {line['status']}. {line['said'].splitlines()[-1] if line['said'] else ''}".strip()
        for name, line in last.items()
        if line["status"] not in MARKS
    ]
    return ["## Faults", "", *([f"- {text}" for text in found] or ["None."]), ""]


def _describe_slice(line: dict[str, Any]) -> tuple[str, ...]:
    machine = line["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    commit = (machine["packed"] or {}).get("commit", "unknown")
    python = f"Python {machine['python']}, {versions}"
    return line["slice"], machine["device"], python, commit, ", ".join(machine["without"]) or "nothing"


def _mark(status: str) -> str:
    return MARKS.get(status, f"{RED} {status}")


def _table(head: list[str], rows: Any) -> list[str]:
    return [table([head, ["---"] * len(head), *rows]), ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="result folders, the earliest first")
    parser.add_argument("--out", type=Path, required=True, help="the page")
    given = parser.parse_args()
    for folder in given.results:
        if not (folder / RUNS).exists():
            parser.error(f"{folder} has no {RUNS}; run.py did not write this folder")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(write_page(given.results), encoding="utf-8")
    print(given.out)


if __name__ == "__main__":
    main()
