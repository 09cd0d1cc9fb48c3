"""Label and tokenize 10^4, 10^5 and 10^6 rows of generated text: seconds, peak memory and their growth.

    python benchmarks/clustering_scale.py                   # writes docs/results/sources_scale.json, a size at a time
    python benchmarks/clustering_scale.py --rows 10000      # one size only

Each size runs in its own process, like `colm sources --cluster` and the tokenization of `colm train`. Sizes already
measured for this commit are skipped.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from preparing import measure_in_child, own_bytes, read_sizes, time_reading
from setting import describe_setting

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "sources_scale.json"
SIZES = (10_000, 100_000, 1_000_000)
SOURCES, WORDS, SEED = 12, 4_000, 0


def write_texts(path: Path, rows: int) -> None:
    """Write rows of 20 to 100 words; each source has favorites among common words, whose frequencies follow Zipf."""
    draw = np.random.default_rng(SEED)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(draw.choice(letters, size)) for size in draw.integers(2, 11, WORDS)]
    common = 1 / np.arange(1, WORDS + 1)
    favours = np.stack([common * np.where(draw.random(WORDS) < 0.05, 20, 1) for _ in range(SOURCES)])
    favours /= favours.sum(1, keepdims=True)
    shares = 0.5 ** np.arange(SOURCES)
    with path.open("w", encoding="utf-8") as file:
        for start in range(0, rows, 10_000):
            for source in draw.choice(SOURCES, min(10_000, rows - start), p=shares / shares.sum()):
                text = [words[word] for word in draw.choice(WORDS, draw.integers(20, 101), p=favours[source])]
                cut = len(text) * 2 // 3
                file.write(
                    json.dumps({"prompt": " ".join(text[:cut]), "completion": " " + " ".join(text[cut:])}) + "\n"
                )


def measure(path: Path) -> dict[str, float]:
    """Label the rows, tokenize them, and return seconds and bytes."""
    from colm.lab.run.prepare import prepare_data
    from colm.lab.run.settings import resolve_settings

    folder = path.parent
    settings = resolve_settings(
        {
            "model": "tiny",
            "data": {"train": str(path), "max_length": 128, "chat_template": False},
            "sources": {"cluster": {"clusters": SOURCES}},
            "output_dir": str(folder / "run"),
        }
    )
    import colm.lab.run.prepare as prepare
    from colm.lab.data.read import read_rows
    from colm.models import train_tiny_tokenizer

    # A real model's tokenizer already exists; the tiny model's is trained on only a part.
    texts = [text for row in read_rows(str(path)).select(range(5_000)) for text in row.values()]
    prepare.train_tiny_tokenizer = lambda _: train_tiny_tokenizer(texts)
    seconds = time_reading(prepare)
    start = time.perf_counter()
    data = prepare_data(settings)
    whole = time.perf_counter() - start
    tokens = int(np.mean([len(ids) for ids in data.train[:1000]["input_ids"]]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    held = sum(row.stat().st_size for row in (folder / "run").iterdir())
    return {
        "label_seconds": seconds["read"],
        "tokenise_seconds": whole - seconds["read"],
        "peak_bytes": peak,
        "anonymous_bytes": own_bytes(),
        "labels_bytes": held,
        "tokens": tokens,
    }


def main() -> None:
    sizes = read_sizes(__doc__.splitlines()[0], SIZES, measure)
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write_texts(path, rows)
            held = measure_in_child(__file__, path, stderr=subprocess.DEVNULL)
        setting = f"{os.cpu_count()} CPU cores; {describe_setting(str(SEED))}"
        found[str(rows)] = held | {"setting": setting}
        RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(rows, found[str(rows)], flush=True)


if __name__ == "__main__":
    main()
