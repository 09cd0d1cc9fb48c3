"""Draws the README's figure from docs/results/headline_real.json: `python benchmarks/front_figure.py`."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from colm.lab.intervals import estimate_mean

ROOT = Path(__file__).parents[1]
METHODS = {
    "control": "small sources whole,\nthe rest at random (control)",
    "colm": "small sources whole,\nmedoids of gradients (colm)",
    "matched": "matched gradients",
    "random-n": "twice as many random rows",
}
GROUPS = {
    "small": ("#d08f34", "small sources"),
    "big": ("#5b8cc4", "large sources"),
    "macro": ("#666666", "mean over sources"),
}


def main() -> None:
    """Write docs/images/front.svg."""
    runs = json.loads((ROOT / "docs" / "results" / "headline_real.json").read_text())
    mpl.rcParams.update({"svg.hashsalt": "colm", "svg.fonttype": "none", "font.size": 10})
    figure, axes = plt.subplots(figsize=(8, 3.4), layout="constrained")
    for place, (group, (color, label)) in enumerate(GROUPS.items()):
        found = [
            estimate_mean([run[group] - runs["random"][seed][group] for seed, run in runs[method].items()])
            for method in METHODS
        ]
        heights = [at - 0.27 * (1 - place) for at in range(len(METHODS))]
        lower = [-interval.mean for interval in found]
        axes.barh(heights, lower, 0.25, xerr=[interval.half for interval in found], color=color, label=label)
    axes.set_yticks(range(len(METHODS)), METHODS.values())
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("loss below that of random batches: 14 real sources, 5 seeds, 95 % intervals")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    figure.savefig(ROOT / "docs" / "images" / "front.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
