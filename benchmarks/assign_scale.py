"""Speed and memory of `colm sources --assign`: seconds and the process's own memory as a shard grows.

    python benchmarks/assign_scale.py                       # prints the table

The rows are those of clustering_scale.py, in Parquet files of one row group. The clusters are fitted on a separate
sample of 10,000 rows.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from clustering_scale import SEED, SOURCES, write_texts
from preparing import Watch, measure_in_child, read_sizes
from setting import describe_setting

SIZES = (50_000, 200_000)
SAMPLE = 10_000


def fit(folder: Path) -> None:
    """Fit the clusters on the sample."""
    from colm.lab.data.read import read_rows
    from colm.lab.sources.config import ClusterConfig
    from colm.lab.sources.labelling import label_rows
    from colm.lab.sources.rows import Rows

    write_texts(folder / "sample.jsonl", SAMPLE)
    rows = Rows([read_rows(str(folder / "sample.jsonl"))])
    label_rows(rows, ClusterConfig(clusters=SOURCES), folder / "labels.parquet")


def measure(folder: Path) -> dict[str, float]:
    """Assign the rows of a file, and return seconds and bytes."""
    from colm.lab.sources.assign import AssignSources
    from colm.lab.sources.shards import write_shard

    assigner = AssignSources(folder / "labels.centroids.npz")
    with Watch() as watch:
        start = time.perf_counter()
        shard = write_shard(assigner, str(folder / "rows.parquet"), folder / "labeled.parquet")
        seconds = time.perf_counter() - start
    return {"rows": shard.rows, "seconds": seconds, "before_bytes": watch.before, "own_bytes": watch.peak}


def main() -> None:
    sizes = read_sizes(__doc__.splitlines()[0], SIZES, measure)
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    print(f"{os.cpu_count()} CPU cores; {describe_setting(str(SEED))}; generated rows of 20 to 100 words.\n")
    print("| rows of the shard | s | rows a second | own memory before, MiB | at its peak, MiB |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        fit(folder)
        for rows in sizes:
            write_texts(folder / "rows.jsonl", rows)
            pq.write_table(pj.read_json(folder / "rows.jsonl"), folder / "rows.parquet", row_group_size=rows)
            for path in folder.glob("*labeled*"):
                path.unlink()
            held = measure_in_child(__file__, folder)
            cells = " | ".join(f"{held[key] / 2**20:,.0f}" for key in ("before_bytes", "own_bytes"))
            print(f"| {rows:,} | {held['seconds']:.0f} | {rows / held['seconds']:,.0f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
