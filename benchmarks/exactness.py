"""How much do the exact features differ from one forward and backward per example, in float32?

For each family, full and LoRA, ragged rows padded left and right: the relative error in the
Frobenius norm, the largest over seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from setting import describe_setting
from tests.support.gradients import FAMILIES, one_backward_per_example
from tests.support.models import ragged_batch, tiny_model

from colm.features.exact import value_gradients

SEEDS = range(5)


def relative_error(family: str, *, lora: bool, seed: int, side: str) -> float:
    model = tiny_model(family, lora=lora, seed=seed)
    batch = ragged_batch([13, 5, 9, 2, 24, 17], side=side, seed=seed)
    expected = one_backward_per_example(model, batch)
    found = value_gradients(model, batch)
    return float((found - expected).norm() / expected.norm())


def main() -> None:
    print(f"{describe_setting('0 to 4')}\n")
    print("| family | trained | relative error (largest of 5 seeds x 2 padding sides) |")
    print("| --- | --- | ---: |")
    for family in FAMILIES:
        for lora in (False, True):
            errors = [
                relative_error(family, lora=lora, seed=seed, side=side) for seed in SEEDS for side in ("left", "right")
            ]
            print(f"| {family} | {'LoRA' if lora else 'full'} | {max(errors):.1e} |", flush=True)


if __name__ == "__main__":
    torch.set_grad_enabled(True)
    main()
