"""What does a coreset step cost, compared with training its rows and training the whole pool?

A Llama of about 12 million parameters on random tokens, rows of 64 to 128 tokens, a pool of 32 in four
micro-batches, 16 kept, one source. Every round times in turn the pool's forward without gradients, the
selection, training the coreset and training the pool; each time is divided by that of training the
pool in the same round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from setting import describe_setting
from step_parts import Shape, build_model, train

from colm import CoresetSelector, SelectionConfig

ROUNDS, ROWS, MICRO_BATCHES, TOKENS = 7, 32, 4, 128
SOURCES = ["only"] * ROWS
SHAPE = Shape(layers=6, vocabulary=8192)


def draw_pool(seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(MICRO_BATCHES):
        ids = torch.randint(0, 8192, (ROWS // MICRO_BATCHES, TOKENS), generator=generator)
        lengths = torch.randint(TOKENS // 2, TOKENS + 1, (len(ids),), generator=generator)
        mask = (torch.arange(TOKENS) < lengths[:, None]).long()
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, : TOKENS // 4] = -100
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return batches


@torch.no_grad()
def forward(model: Any, batches: list[dict[str, Any]]) -> None:
    model.eval()
    for batch in batches:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        inner.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main() -> None:
    print(f"{describe_setting(f'0 to {ROUNDS}')}; pool {ROWS}, keep {ROWS // 2}, T {TOKENS}\n")
    print("| trained | features | trunk forward | selection | coreset | selection + coreset | spread of the last |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    for lora in (False, True):
        for features in ("exact", "spsa", "none"):
            model = build_model(SHAPE, lora=lora, tokens=TOKENS)
            config = SelectionConfig(features=features, small_sources="none")
            selector = CoresetSelector(model, config, {"only": 1000})
            ratios = [measure(model, selector, draw_pool(seed)) for seed in range(ROUNDS + 1)][
                1:
            ]  # the first round warms up
            columns = [sorted(column) for column in zip(*ratios, strict=True)]
            middle = [f"{column[len(column) // 2]:.2f}" for column in columns]
            spread = f"{columns[-1][0]:.2f} to {columns[-1][-1]:.2f}"
            print(f"| {'LoRA' if lora else 'full'} | {features} | {' | '.join(middle)} | {spread} |", flush=True)
    print("\nEach figure is a time divided by that of training the whole pool; medians over rounds.")


def measure(model: Any, selector: CoresetSelector, pool: list[dict[str, Any]]) -> tuple[float, ...]:
    """Return trunk forward, selection, coreset training, and the sum of the last two, relative to training the pool."""
    whole = seconds(lambda: train(model, pool))
    trunk = seconds(lambda: forward(model, pool))
    kept: list[dict[str, Any]] = []
    selection = seconds(lambda: kept.extend(selector.take(pool, selector.select(pool, SOURCES))))
    selector.commit()
    coreset = seconds(lambda: train(model, kept))
    return trunk / whole, selection / whole, coreset / whole, (selection + coreset) / whole


if __name__ == "__main__":
    main()
