"""How long `colm report` takes with many sources: CPU seconds for one run, for several, and for a comparison.

python benchmarks/report_time.py [SOURCES ...]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.reports import write_comparison_folder, write_run

from colm.lab.report import read_run, write_comparison, write_report


def measure(work: Callable[[], Path]) -> tuple[float, int]:
    """Return the CPU seconds of the work and the bytes of the page it writes."""
    begin = time.process_time()
    page = work()
    return time.process_time() - begin, page.stat().st_size


def measure_pages(folder: Path, count: int) -> dict[str, tuple[float, int]]:
    """Write runs with this many sources, and measure each page about them."""
    sizes = {f"source-{i}": round(90_000 * 0.99**i) + 20 for i in range(count)}
    runs = [write_run(folder / f"run-{seed}", sizes=sizes, steps=40, seed=seed) for seed in range(2)]
    write_comparison_folder(folder / "compared", methods={"coreset": 0.1, "random": 0.0}, seeds=1, sizes=sizes)
    return {
        "one run": measure(lambda: write_report([read_run(runs[0], "run")], folder / "one.html")),
        "two runs": measure(lambda: write_report([read_run(run, run.name) for run in runs], folder / "two.html")),
        "comparison": measure(lambda: write_comparison(folder / "compared")),
    }


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]] or [50, 250, 500, 1000, 2000]
    found: dict[str, list[float]] = {}
    print("sources  page         CPU s   page kB")
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            for page, (seconds, size) in measure_pages(Path(name), count).items():
                found.setdefault(page, []).append(seconds)
                print(f"{count:7,}  {page:10}  {seconds:6.2f}  {size / 1000:8,.0f}", flush=True)
    if len(counts) > 1:
        for page, took in found.items():
            slope = (took[-1] - took[0]) / (counts[-1] - counts[0])
            print(f"{page}: {1000 * slope:.1f} ms of CPU per source, from {counts[0]:,} to {counts[-1]:,} sources")


if __name__ == "__main__":
    main()
