"""Rows whose true sources are easy to tell by their words."""

from __future__ import annotations

import random

from datasets import Dataset

WORDS = {
    "farm": ["cow", "barn", "hay", "milk", "tractor", "field", "wheat", "plough", "sheep", "fence"],
    "sea": ["boat", "wave", "sail", "anchor", "harbour", "tide", "fish", "net", "captain", "storm"],
    "law": ["court", "judge", "claim", "appeal", "witness", "clause", "contract", "verdict", "plea", "bench"],
}
SHARES = {"farm": 6, "sea": 3, "law": 1}


def topic_rows(rows: int, seed: int = 0, *, labelled: bool = True) -> Dataset:
    """Draw rows of six words, in shuffled order; with their true source where `labelled`."""
    draw = random.Random(seed)
    names = [name for name, share in SHARES.items() for _ in range(share * rows // 10)]
    draw.shuffle(names)
    made = []
    for name in names:
        words = [draw.choice(WORDS[name]) for _ in range(6)]
        row = {"prompt": " ".join(words[:4]) + ": ", "completion": " ".join(words[4:])}
        made.append(row | ({"source": name} if labelled else {}))
    return Dataset.from_list(made)
