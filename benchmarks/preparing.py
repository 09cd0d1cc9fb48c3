"""Measurements of preparing data by its size, each size in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CHILD = "--child"


def read_sizes(description: str, sizes: Sequence[int], measure: Callable[[Path], dict[str, Any]]) -> list[int]:
    """Return the numbers of rows to measure; a process that `measure_in_child` started measures, and ends here."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rows", type=int, nargs="+", default=sizes)
    parser.add_argument(CHILD, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(Path(arguments.child))))
        sys.exit()
    return list(arguments.rows)


def measure_in_child(script: str, place: Path, *, stderr: int | None = None) -> dict[str, Any]:
    """Return what a script's `measure` finds at a place, in a new process with its own cache of `datasets`."""
    folder = place if place.is_dir() else place.parent
    environment = {**os.environ, "HF_HOME": str(folder), "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, script, CHILD, str(place)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def time_reading(prepare: Any) -> dict[str, float]:
    """Let `prepare_data` of a module note the seconds in which it reads rows, with their sources, under ``read``."""
    read, seconds = prepare.read_rows_of, {}

    def timed(*given: object, **options: object) -> object:
        start = time.perf_counter()
        found = read(*given, **options)
        seconds["read"] = time.perf_counter() - start
        return found

    prepare.read_rows_of = timed
    return seconds


def own_bytes() -> int:
    """Return the process's own memory, without file pages."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


class Watch:
    """Samples the process's own memory, `peak` bytes, while its block runs."""

    def __enter__(self) -> Watch:
        self.before = self.peak = own_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak = max(self.peak, own_bytes())
