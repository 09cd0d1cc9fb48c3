"""docs/results/speed.md: tables from the JSON of step.py, growth.py and cheaper.py in docs/results.

python benchmarks/speed_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from cheaper import table as cheaper_table
from clustering_page import read, table

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAGE = RESULTS / "speed.md"
MARK = "<!-- From here on written by `python benchmarks/speed_page.py`. -->"
TARGETS = {
    "selection_over_floor": "1.10",
    "after_features_share_128": "0.02",
    "step_over_ideal": "1.06",
    "checkpointed_step_over_ideal": "0.87",
    "memory_over_coreset": "1.02",
    "memory_over_pool": "0.55",
}


def step_section(name: str, title: str, command: str) -> str:
    held = read(RESULTS / name)
    shape = ", ".join(f"{key} {value}" for key, value in held["shape"].items())
    kinds = list(held["by_kind"])
    rows = []
    for figure in held["by_kind"][kinds[0]]:
        cells = []
        for kind in kinds:
            found = held["by_kind"][kind][figure]
            cells += [f"{found['median']:.3f}", f"{found['min']:.3f} to {found['max']:.3f}"]
        rows.append([figure, TARGETS.get(figure, ""), *cells])
    head = ["figure", "target", *(cell for kind in kinds for cell in (kind, "range"))]
    padding = [
        [part, f"{held['padding'][f'{key}_before']:.3f}", f"{held['padding'][f'{key}_after']:.3f}"]
        for part, key in (("the pool, in the selection pass", "pool"), ("kept rows, in training", "kept"))
    ]
    padding.append(["both", f"{held['padding']['before']:.3f}", f"{held['padding']['after']:.3f}"])
    parts = [f"## {title}", f"`{command}`; {held['setting']}. {shape}.", table(head, rows)]
    if name == "step.json":
        parts += [
            "Padding, as a fraction of the computed tokens on the demo's mixture, before and after rows are grouped by "
            "length (target 0.10):",
            table(["tokens of", "before", "after"], padding),
        ]
    return "\n\n".join(parts)


def growth_section() -> str:
    held = read(RESULTS / "growth.json")

    def cells(one: dict[str, Any], *names: str) -> list[str]:
        return [f"{one[name]:.3f}" for name in names]

    pools = [
        [f"{one['rows']:,}", *cells(one, "after_features_seconds", "facility_seconds"), *cells(one, *SHARES)]
        for one in held["pool"]
    ]
    names = ("selection_over_floor", "after_features_share", "step_over_ideal", "official_over_ideal")
    by_length = [[f"{one['tokens']:,}", *cells(one, *names)] for one in held["tokens"]]
    by_word = [[f"{one['vocabulary']:,}", *cells(one, *names)] for one in held["vocabulary"]]
    by_dim = [
        [
            one["model"],
            f"{one['dim']:,}",
            f"{one['seconds']:.2f}",
            f"{one['held_bytes'] / 2**20:,.0f}",
            f"{one['matrix_bytes'] / 2**20:,.0f}",
        ]
        for one in held["gradient"]
    ]
    return "\n\n".join(
        [
            "## How the cost grows",
            f"`python benchmarks/growth.py`; {held['setting']}; medians of the rounds.",
            "By pool size, half of it kept, D = 102,400, T = 128; shares of a step of the Llama above. From 2,048 to "
            f"4,096 rows the work after the features grows as N to the {held['pool_exponent']:.2f}, facility "
            f"location as N to the {held['facility_exponent']:.2f}.",
            table(
                ["N", "after the features, s", "facility location, s", "share after the features", "of facility"], pools
            ),
            "By row length and vocabulary; 8 rows of which 4 are kept, a Llama of 4 layers and width 128, LoRA.",
            table(["T", *names], by_length),
            table(["vocabulary", *names], by_word),
            "By gradient size: the work after the features for 64 rows of 128 tokens, the memory of the stored "
            "gradients, and that of the full matrix.",
            table(["value projection of", "D", "seconds", "held, MiB", "as a matrix, MiB"], by_dim),
        ]
    )


SHARES = ("after_features_share", "facility_share")


def cheaper_section() -> str:
    parts = [
        "## Cheaper selection passes",
        "`python benchmarks/cheaper.py tiny` and `smollm2`; half of each pool kept.",
    ]
    titles = {
        "tiny": "The experiments' model (2.2 M parameters, after 60 steps), full",
        "smollm2": "SmolLM2-135M, LoRA of rank 16",
    }
    for name, found in read(RESULTS / "cheaper.json").items():
        parts.append(f"{titles[name]}; {found['pools']} pools of {found['pool']} rows; {found['setting']}:")
        parts.append(cheaper_table(found))
    return "\n\n".join(parts)


def main() -> None:
    held = PAGE.read_text(encoding="utf-8") if PAGE.exists() else f"# Speed\n\n{MARK}\n"
    smollm2 = (
        "python benchmarks/step.py --smollm2 --rows 8 --keep 4 --micro-batches 2 --trained lora --rounds 2 --large"
    )
    parts = [
        step_section(
            "step.json", "A step compared with its floor and its ideal", "python benchmarks/step.py --rounds 5"
        ),
        step_section("step_smollm2.json", "The same with SmolLM2-135M", smollm2),
        growth_section(),
        cheaper_section(),
    ]
    PAGE.write_text(held.partition(MARK)[0] + MARK + "\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
