"""What does each kind of feature cost, compared with the trunk's forward and with training?

A Llama of about 12 million parameters on random tokens, rows of one length, the first fourth of each
without labels. Time: every round times in turn the trunk's forward without gradients and each selection
pass on the same rows and micro-batches; each is divided by the forward of its round. Memory: the peak
of a pass's allocations, by PyTorch's own record, and the bytes that autograd saves, excluding weights,
each divided by those of the training forward and backward of one micro-batch of the same rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from counting import peak_bytes
from setting import describe_setting
from step_cost import SHAPE
from step_parts import build_model
from torch import Tensor, nn

from colm import SelectionConfig, example_mean
from colm.features.locate import locate_value_site
from colm.features.selection_pass import run_selection_pass
from colm.step.pool import Pool

SIZES = {128: 16, 512: 8, 2048: 2}
"""Tokens per row, and rows in the one micro-batch."""

ROUNDS = 7

PASSES = {
    "exact": SelectionConfig(),
    "SPSA, 1 probe": SelectionConfig(features="spsa"),
    "SPSA, 4 probes": SelectionConfig(features="spsa", spsa_probes=4),
    "SPSA, 16 probes": SelectionConfig(features="spsa", spsa_probes=16),
    "mean hidden state": SelectionConfig(features="mean_hidden"),
    "last hidden state": SelectionConfig(features="last_hidden"),
    "loss": SelectionConfig(features="loss"),
    "gradient norm": SelectionConfig(features="gradient_norm"),
}


def draw_rows(rows: int, tokens: int, seed: int) -> dict[str, Tensor]:
    ids = torch.randint(0, 8192, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[:, : tokens // 4] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def saved_bytes(action: Callable[[], Any], model: nn.Module) -> int:
    """Return the bytes of distinct storages, excluding weights, that autograd saves while `action` runs."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        action()
    return sum(storages.values())


def measure(tokens: int, *, lora: bool, rounds: int) -> None:
    model: Any = build_model(SHAPE, lora=lora, tokens=max(SIZES))
    site = locate_value_site(model)
    rows = SIZES[tokens]
    trunk = (model.get_base_model() if lora else model).model

    @torch.no_grad()
    def forward(batch: dict[str, Tensor]) -> None:
        model.eval()
        trunk(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)

    def select(batch: dict[str, Tensor], config: SelectionConfig) -> None:
        generator = torch.Generator().manual_seed(0)
        pool, wanted = Pool(batch), config.measured
        assert wanted is not None
        features = run_selection_pass(
            model, site, pool, list(range(rows)), wanted, config.selection_pass, generator=generator
        )
        features.rows(torch.arange(rows))  # the selection pass keeps factors; this makes the rows of them

    def train(batch: dict[str, Tensor]) -> None:
        model.train()
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        example_mean(logits, batch["labels"]).backward()
        model.zero_grad(set_to_none=False)  # gradients exist in every step but the first

    ratios: dict[str, list[float]] = {name: [] for name in PASSES}
    for seed in range(rounds + 1):  # the first round warms up
        batch = draw_rows(rows, tokens, seed)
        alone = seconds(lambda batch=batch: forward(batch))
        for name, config in PASSES.items():
            if name.startswith("SPSA, 16") and tokens > 512:
                continue  # 32 copies of a long row: minutes
            ratios[name].append(seconds(lambda batch=batch, config=config: select(batch, config)) / alone)
    batch = draw_rows(rows, tokens, 0)
    train(batch)
    peak, saved = peak_bytes(lambda: train(batch)), saved_bytes(lambda: train(batch), model)
    for name, config in PASSES.items():
        times = sorted(ratios[name][1:])
        if not times:
            continue
        memory = peak_bytes(lambda config=config: select(batch, config)) / peak
        kept = saved_bytes(lambda config=config: select(batch, config), model) / saved
        print(
            f"| {tokens} | {'LoRA' if lora else 'full'} | {name} | {statistics.median(times):.2f} "
            f"| {times[0]:.2f} to {times[-1]:.2f} | {memory:.2f} | {kept:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    print("# The cost of features\n")
    print(f"`python benchmarks/feature_cost.py`; {describe_setting(f'0 to {rounds}')}.\n")
    print("A Llama of 12 M parameters; one micro-batch of " + ", ".join(f"{r} x {t}" for t, r in SIZES.items()), end="")
    print(
        " tokens. Time relative to the trunk's forward (median and range over rounds); memory relative to training on "
        "the same rows."
    )
    print("\n| T | trained | features | time | range | peak memory | saved for backward |")
    print("| ---: | --- | --- | ---: | --- | ---: | ---: |")
    for tokens in SIZES:
        for lora in (False, True):
            measure(tokens, lora=lora, rounds=rounds)


if __name__ == "__main__":
    main()
