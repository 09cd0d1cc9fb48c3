"""Rehearse the suite on a CPU: pack, run all parts in tiny sizes, write the page; then repeat with planted faults.

    python benchmarks/gpu/rehearse.py

Exits with status 1 if the first page shows a fault, or the second does not show every planted fault.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from cells import RED
from figures import PLANT
from run import HERE, PACKED

PLANTED = {
    "wrong:right": "right, ",
    "raise:fast": "fast: failed. RuntimeError: planted: a part that raises",
    "hang:helps": "helps: killed at its limit.",
}
"""Faults, and the text about each that the page must contain."""


def call(script: str, *arguments: object, planted: str = "") -> int:
    environment = {**os.environ, PLANT: planted, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False).returncode


def rehearse(folder: Path, *arguments: str, planted: str = "") -> tuple[bool, str]:
    """Run the suite and write its page; return whether everything finished, and the page."""
    results, page = folder / "results", folder / "rehearsal.md"
    shutil.rmtree(folder, ignore_errors=True)
    places = ("--archives", folder.with_name("archives"), "--data", folder / "data", "--results", results)
    done = call("run.py", "--minutes", "12", "--rehearsal", *places, *arguments, planted=planted) == 0
    assert call("page.py", results, "--out", page) == 0
    return done, page.read_text(encoding="utf-8")


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    folder = PACKED / "rehearsal"
    shutil.rmtree(folder, ignore_errors=True)
    if call("pack.py", "--tiny", "--out", folder / "archives"):
        return 1
    done, page = rehearse(folder / "whole")
    if not done or RED in page:
        print(page, "The rehearsal has faults; see above.", sep="\n")
        return 1
    _, page = rehearse(folder / "planted", "--limit", "helps=12", planted=",".join(PLANTED))
    faults = [line for line in page.splitlines() if line.startswith(f"- {RED} ")]
    hidden = [fault for fault, text in PLANTED.items() if not any(line[4:].startswith(text) for line in faults)]
    if hidden:
        print(page, f"These planted faults are missing from the page: {', '.join(hidden)}.", sep="\n")
        return 1
    print(
        *faults, f"All parts ran, and the page shows the planted faults. {folder / 'whole' / 'rehearsal.md'}", sep="\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
