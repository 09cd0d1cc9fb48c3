"""docs/results/sources.md: tables from the figures of clustering.py, clustering_runs.py and clustering_scale.py."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from clustering_runs import KEPT, LABELS, MIXTURES

from colm.lab.intervals import estimate_mean

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAGE = RESULTS / "sources.md"
MARK = "<!-- From here on written by `python benchmarks/clustering.py page`. -->"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Show a mean, with its range if there is one."""
    low, high = (f"{edge:.{digits}f}" for edge in (min(values), max(values)))
    middle = f"{mean(values):.{digits}f}"
    return middle if low == high else f"{middle} ({low} to {high})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def grouped(values: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> dict[Any, list[dict[str, Any]]]:
    found = defaultdict(list)
    for value in values:
        found[key(value)].append(value)
    return dict(found)


def labels_section() -> str:
    held = read(RESULTS / "sources_labels.json")
    parts = [
        "## Agreement with the true sources",
        f"`python benchmarks/clustering.py labels`; {held[0]['rows']:,} rows of each mixture; {held[0]['setting']}; "
        "mean over seeds of k-means and its range. ARI: adjusted Rand index. NMI: normalized mutual information. Small "
        "kept: share of the truly small sources' rows in clusters below the uniform share, which the rule keeps whole. "
        "Big kept: the same share for the truly large sources' rows, which the rule should not keep whole. auto: the "
        "number at the elbow; silhouette: the number with the largest silhouette, for seeds 0, 1 and 2.",
    ]
    for mixture, of_mixture in grouped(held, lambda one: one["mixture"]).items():
        rows = []
        for (embedding, number), seeds in grouped(
            of_mixture, lambda one: (one["embedding"], str(one["clusters"]))
        ).items():
            figures = [spread([one[name] for one in seeds]) for name in ("ari", "nmi", "small_kept", "big_kept")]
            if number == "auto":
                chosen = ", ".join(str(one["chosen"]) for one in seeds)
                best = ", ".join(str(max(one["tried"], key=lambda tried: tried[1])[0]) for one in seeds)
                number = f"auto: {chosen} (silhouette: {best})"
            rows.append([embedding, number, *figures])
        head = ["embedding", "clusters", "ARI", "NMI", "small kept", "big kept"]
        parts += [f"### {mixture}", table(head, rows, left=2)]
    return "\n\n".join(parts)


def gradients_section() -> str:
    held = read(RESULTS / "sources_gradients.json")
    rows = [
        [labels, method, f"{found.mean:.3f}", f"{found.half or 0.0:.3f}"]
        for labels, methods in held["labels"].items()
        for method, values in methods.items()
        if (found := estimate_mean(values)) is not None
    ]
    return "\n\n".join(
        [
            "## The coreset's gradient compared with its pool's",
            f"`python benchmarks/clustering.py gradients`; {held['setting']}; {held['pools']} pools of {held['pool']} "
            "rows of the reasoning mixture at the pretrained weights, half kept; cosine between the mean gradients "
            "over all weights.",
            table(["labels", "method", "cosine", "95 % half-width over pools"], rows, left=2),
        ]
    )


def runs_section() -> str:
    order = list(LABELS)
    parts = ["## Training with true labels, with clusters, and without labels"]
    for mixture in MIXTURES:
        held = [read(path) for path in sorted((KEPT / mixture).glob("*.json"))]
        held.sort(key=lambda one: (one["method"] != "control", order.index(one["labels"]), one["seed"]))
        true = {(one["method"], one["seed"]): one["macro"] for one in held if one["labels"] == "true"}
        rows = []
        for (method, labels), seeds in grouped(held, lambda one: (one["method"], one["labels"])).items():
            beside = [one["macro"] - true[method, one["seed"]] for one in seeds if (method, one["seed"]) in true]
            figures = [spread([one[name] for one in seeds]) for name in ("macro", "small", "big")]
            figures.append(spread([one["small_kept"] for one in seeds if one["small_kept"] is not None]))
            rows.append([method, labels, str(len(seeds)), *figures, spread(beside)])
        head = ["method", "labels", "seeds", "macro loss", "small", "big", "small kept", "macro, minus true labels"]
        settings = sorted({one["setting"].rpartition("; ")[0] for one in held})
        parts += [
            f"### {mixture}: losses",
            f"`python benchmarks/clustering_runs.py {mixture}`; {'; and '.join(settings)}; the mixture's pretrained "
            f"model, 32 of 64 rows, {held[0]['steps']} steps. Losses are by true source, on held-out rows; mean over "
            "seeds and range. Small kept: share of the truly small sources' pool rows that were trained on; for "
            "clusters and no labels, seed 0 only if seeds 1 and 2 ran before the row numbering was fixed.",
            table(head, rows, left=2),
        ]
    return "\n\n".join(parts)


def scale_section() -> str:
    held = {int(rows): figures for rows, figures in read(RESULTS / "sources_scale.json").items()}
    sizes = sorted(held)
    rows = []
    for size in sizes:
        one = held[size]
        seconds = one["label_seconds"] + one["tokenise_seconds"]
        before = held.get(size // 10)
        growth = ""
        if before:
            growth = f"{math.log10(seconds / (before['label_seconds'] + before['tokenise_seconds'])):.2f}"
        numbers = [one["label_seconds"], one["tokenise_seconds"], seconds]
        memory = f"{one['peak_bytes'] / 2**30:.2f}"
        rows.append([f"{size:,}", *(f"{number:.0f}" for number in numbers), growth, memory])
    head = ["rows", "label, s", "tokenise, s", "both, s", "grows as rows to the", "peak memory, GiB"]
    setting = held[sizes[-1]]["setting"]
    return "\n\n".join(
        [
            "## Scale",
            f"`python benchmarks/clustering_scale.py`; {setting}; generated rows of 20 to 100 words, 12 clusters by "
            "TF-IDF, tokenized to at most 128 tokens. Memory is the process's largest resident set, pages of mapped "
            "files included.",
            table(head, rows),
        ]
    )


def write_page() -> None:
    """Write the tables below the text above the mark."""
    held = PAGE.read_text(encoding="utf-8") if PAGE.exists() else f"# Clusters as sources\n\n{MARK}\n"
    head = held.partition(MARK)[0]
    parts = [labels_section(), gradients_section(), runs_section(), scale_section()]
    PAGE.write_text(head + MARK + "\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    print(PAGE)
