"""Measure the features and write the pages in docs/results: all pages, or those named.

python benchmarks/features.py                            # hours on two CPU cores; gathering resumes
python benchmarks/features.py cost architectures
python benchmarks/features.py estimators --data mixture.jsonl
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parent / "docs" / "results"
PAGES = ("architectures", "estimators", "cost")


def run(*command: str, page: str | None = None) -> None:
    """Run a script in this folder; its output becomes the page."""
    print(" ".join(command), file=sys.stderr)
    done = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:]],
        check=True,
        stdout=subprocess.PIPE if page else None,
        text=True,
    )
    if page:  # written once it is complete
        (RESULTS / page).write_text(done.stdout, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", metavar="|".join(PAGES), default=list(PAGES))
    parser.add_argument("--data", help="JSON lines for the estimators; default: the demo's generated mixture")
    arguments = parser.parse_args()
    if unknown := set(arguments.pages) - set(PAGES):
        parser.error(f"unknown pages: {', '.join(sorted(unknown))}; choose from {', '.join(PAGES)}")
    if "architectures" in arguments.pages:
        run("architectures.py", page="architectures.md")
    if "cost" in arguments.pages:
        run("feature_cost.py", page="feature_cost.md")
    if "estimators" in arguments.pages:
        run("fidelity/gather.py", *(["--data", arguments.data] if arguments.data else []))
        run("fidelity/study.py")


if __name__ == "__main__":
    main()
