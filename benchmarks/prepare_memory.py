"""Memory and time of what `colm train` does before it trains: rows of text to tokens, held out, counted and weighted.

    python benchmarks/prepare_memory.py                          # 10^5 to 10^7 rows, half an hour; prints the table
    python benchmarks/prepare_memory.py --rows 10000 100000

Each size runs in its own process, with generated rows of 12 sources. Rows are stored on disk as Arrow files, whose
pages the system may drop; what must fit in memory is the process's own (anonymous) memory, whose peak is sampled.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from preparing import Watch, measure_in_child, read_sizes, time_reading
from setting import describe_setting

SIZES = (100_000, 1_000_000, 10_000_000)
SOURCES, WORDS, SEED = 12, 4_000, 0
HELD_OUT = 100
"""Rows held out of each source."""

MEMORY = 64 * 2**30


def write_texts(path: Path, rows: int) -> None:
    """Write rows of 8 words, 6 of them the prompt; each source is half the size of the one before."""
    draw = np.random.default_rng(SEED)
    words = np.array(["".join(draw.choice(list("abcdefghijklmnopqrstuvwxyz"), size)) for size in range(2, 10)] * 500)
    words = np.char.add(words, np.arange(WORDS).astype(str))
    shares = 0.5 ** np.arange(SOURCES)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, rows, 10_000):
            count = min(10_000, rows - start)
            sources = draw.choice(SOURCES, count, p=shares / shares.sum())
            for source, text in zip(sources.tolist(), words[draw.integers(0, WORDS, (count, 8))].tolist(), strict=True):
                row = {"source": f"source-{source}", "prompt": " ".join(text[:6]), "completion": " ".join(text[6:])}
                file.write(json.dumps(row) + "\n")


def measure(path: Path) -> dict[str, float]:
    """Prepare the rows, and return seconds and bytes."""
    import colm.lab.run.prepare as prepare
    from colm.lab.run.settings import resolve_settings
    from colm.models import train_tiny_tokenizer

    data = {"train": str(path), "max_length": 64, "chat_template": False}
    data |= {"validation_rows": HELD_OUT, "temperature": 2.0}
    settings = resolve_settings({"model": "tiny", "data": data, "output_dir": str(path.parent / "run")})
    # A real model's tokenizer already exists; the tiny model's is trained on only a part.
    with path.open(encoding="utf-8") as file:
        tokenizer = train_tiny_tokenizer(json.loads(line)["prompt"] for line in islice(file, 5_000))
    prepare.train_tiny_tokenizer = lambda _: tokenizer
    seconds = time_reading(prepare)
    with Watch() as watch:
        start = time.perf_counter()
        prepared = prepare.prepare_data(settings)
        whole = time.perf_counter() - start
    return {
        "trained": len(prepared.train),
        "read_seconds": seconds["read"],
        "tokenize_seconds": whole - seconds["read"],
        "before_bytes": watch.before,
        "own_bytes": watch.peak,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "disk_bytes": sum(file.stat().st_size for file in path.parent.rglob("*.arrow")),
    }


def run(rows: int) -> dict[str, float]:
    """Measure one size in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_texts(path, rows)
        return measure_in_child(__file__, path)


def main() -> None:
    sizes = read_sizes(__doc__.splitlines()[0], SIZES, measure)
    print(f"{os.cpu_count()} CPU cores; {describe_setting(str(SEED))}; generated rows of 8 words, {SOURCES} sources.\n")
    print(
        "| rows | read, hold out, weight, s | tokenize, s | own memory, peak, MiB | resident, peak, MiB | disk, MiB |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    found = {}
    for rows in sizes:
        found[rows] = held = run(rows)
        cells = " | ".join(f"{held[key] / 2**20:,.0f}" for key in ("own_bytes", "peak_bytes", "disk_bytes"))
        print(f"| {rows:,} | {held['read_seconds']:.0f} | {held['tokenize_seconds']:.0f} | {cells} |", flush=True)
    if len(found) > 1:
        few, many = min(found), max(found)
        a_row = (found[many]["own_bytes"] - found[few]["own_bytes"]) / (many - few)
        rest = found[few]["own_bytes"] - a_row * few
        print(f"\n{a_row:,.0f} bytes a row, and {rest / 2**20:,.0f} MiB whatever the rows.")
        print(f"{(MEMORY - rest) / a_row / 1e6:,.0f} million rows fit in {MEMORY / 2**30:.0f} GiB.")


if __name__ == "__main__":
    main()
