"""Words as vectors (`colm features --by words`): time per row, as a ratio to reading the rows from a file.

python benchmarks/feature_words.py                   # 10^6 rows of generated text
python benchmarks/feature_words.py --rows 10000
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from clustering_scale import SEED, write_texts
from setting import describe_setting

DIMENSIONS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_texts(path, rows)
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"  # before datasets is imported
        measure(path, Path(folder) / "features.parquet", rows)


def measure(path: Path, out: Path, count: int) -> None:
    """Read the rows, write their vectors, and print the ratio of the two times."""
    from colm.lab.data.read import read_rows
    from colm.lab.run.features import text_vectors
    from colm.lab.sources.config import ClusterConfig
    from colm.lab.sources.embed import TfidfEmbedder
    from colm.lab.sources.rows import Rows
    from colm.lab.sources.vectors import Header, write_vectors

    times = [time.perf_counter()]
    rows = Rows([read_rows(str(path))])
    characters = sum(len(row.text) for block in rows.blocks() for row in block)
    times.append(time.perf_counter())
    config = ClusterConfig(dimensions=DIMENSIONS, seed=SEED)
    vectors = text_vectors(TfidfEmbedder(config), config, rows)
    times.append(time.perf_counter())
    write_vectors(out, vectors(range(count)), Header({}, {"rows": count, "digest": ""}, DIMENSIONS, []))
    times.append(time.perf_counter())
    read, fit, embed = (end - start for start, end in pairwise(times))
    print(f"{os.cpu_count()} CPU cores; {describe_setting(str(SEED))}")
    print(f"{count:,} rows of {characters // count} characters; reading them is 1")
    print(f"fitting the words to {min(count, config.sample):,} rows: {fit / read:.2f}; vectors: {embed / read:.2f}")
    print(f"vectors: {embed / count * 1e6:.0f} microseconds a row; file: {out.stat().st_size / count:.0f} bytes a row")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, file pages included")


if __name__ == "__main__":
    main()
