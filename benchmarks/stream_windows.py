"""How even is a balanced order that deals a window of rows at a time, as streams do?

    python benchmarks/stream_windows.py

20,000 made rows of 40 clusters, 8 a step, dealt by `deal_balanced` in windows of several sizes. The figures are the
root mean square deviation of the sum over so many consecutive steps from the mean of all rows, relative to that of
independent draws.
"""

from __future__ import annotations

import numpy as np
from setting import describe_setting

from colm.ordering import deal_balanced

ROWS, CLUSTERS, BATCH, SEED = 20_000, 40, 8, 0
STEPS = (1, 8, 32, 128)
WINDOWS = (BATCH, 160, 496, 1_000, 4_000, ROWS)
"""Rows of a window; those of one step are in random order."""


def make_rows() -> np.ndarray:
    """Return features of unit length, (ROWS, 64) float64."""
    draw = np.random.default_rng(SEED)
    centers = _unit(draw.standard_normal((CLUSTERS, 64)))
    return _unit(centers[draw.choice(CLUSTERS, ROWS)] + 0.12 * draw.standard_normal((ROWS, 64)))


def deviations(rows: np.ndarray, window: int) -> list[float]:
    """Return the deviation over each of `STEPS`, of the rows dealt a window at a time."""
    whole = rows[: len(rows) // window * window]
    parts = [part[deal_balanced(part, [BATCH] * (window // BATCH))] for part in np.split(whole, len(whole) // window)]
    steps = (np.concatenate(parts) - whole.mean(0)).reshape(-1, BATCH, whole.shape[1]).sum(1)
    sums = np.cumsum(np.concatenate([np.zeros((1, steps.shape[1])), steps]), axis=0)
    spread = np.square(whole - whole.mean(0)).sum(1).mean()
    return [float(np.sqrt(np.square(sums[n:] - sums[:-n]).sum(1).mean() / (spread * BATCH * n))) for n in STEPS]


def _unit(rows: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def main() -> None:
    print(f"`python benchmarks/stream_windows.py`; {describe_setting(str(SEED))}.\n")
    print(f"| rows of a window | {' | '.join(f'over {steps} steps' for steps in STEPS)} |")
    print(f"| ---: |{' ---: |' * len(STEPS)}")
    rows = make_rows()
    for window in WINDOWS:
        print(f"| {window:,} | {' | '.join(f'{each:.2f}' for each in deviations(rows, window))} |", flush=True)


if __name__ == "__main__":
    main()
