"""Are the exact features right on every causal language model that transformers can build small?

For each model type of the installed transformers: the detected module, and the relative error of its
features compared with one forward and backward per example, in full training and with LoRA (float32).
In bfloat16: the smallest cosine with a bfloat16 backward per example, and the relative error of that
backward compared with float32. Types that cannot be built, or have no value projection, are listed with
the reason.

    python benchmarks/architectures.py > docs/results/architectures.md
"""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from setting import describe_setting
from tests.support.architectures import build_architecture, causal_types
from tests.support.gradients import one_backward_per_example
from tests.support.models import ragged_batch, with_lora

from colm import UnsupportedModelError
from colm.features.exact import value_gradients
from colm.features.locate import locate_value_site
from colm.features.site import ValueSite

LENGTHS = [13, 9, 16, 7]
LARGEST = 50_000_000


class Row(NamedTuple):
    """The figures of one model type."""

    site: ValueSite
    full: float
    lora: float
    cosine: float
    rounding: float


def measure(model_type: str) -> Row:
    batch = ragged_batch(LENGTHS)
    model = build_architecture(model_type)
    if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
        raise ValueError("its smallest configuration is too large")
    site = locate_value_site(model)
    full, expected = value_gradients(model, batch), one_backward_per_example(model, batch, own_loss=False)
    adapted = with_lora(build_architecture(model_type))
    lora, lora_expected = value_gradients(adapted, batch), one_backward_per_example(adapted, batch, own_loss=False)
    half = build_architecture(model_type).to(torch.bfloat16)
    found, half_expected = value_gradients(half, batch), one_backward_per_example(half, batch, own_loss=False)
    cosines = torch.nn.functional.cosine_similarity(found.double(), half_expected.double(), dim=1)
    return Row(
        site,
        relative(full, expected),
        relative(lora, lora_expected),
        float(cosines.min()),
        relative(half_expected.float(), expected),
    )


@torch.no_grad()
def change_by_padding(model_type: str) -> float:
    """Return the difference between a masked row's logits in a batch and those of the row alone."""
    model, batch = build_architecture(model_type), ragged_batch(LENGTHS)
    row = LENGTHS.index(min(LENGTHS))
    used = batch["attention_mask"][row].bool()
    alone = model(input_ids=batch["input_ids"][row : row + 1, used]).logits[0]
    padded = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[row, used]
    return relative(padded, alone)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print("# Exact features by architecture\n")
    print(f"`python benchmarks/architectures.py`; {describe_setting('0')}; rows of {LENGTHS} tokens.\n")
    print("Errors are relative, in the Frobenius norm, compared with one forward and backward per example.\n")
    print("| model type | module | values | layers after | full | LoRA | bf16 cosine | bf16 against float32 |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    left_out: list[tuple[str, str]] = []
    right: list[str] = []
    wrong: list[tuple[str, float]] = []
    for model_type in causal_types():
        try:
            row: Any = measure(model_type)
        except UnsupportedModelError as error:
            left_out.append((model_type, "refused: " + str(error).split("(looked for")[0].strip()))
            continue
        except Exception as error:  # configs and modeling code raise anything
            left_out.append((model_type, f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"))
            continue
        site = row.site
        rows = (
            f"{site.out_features} of {site.module.weight.numel() // site.in_features}"
            if site.value_rows is not None
            else "all"
        )
        print(
            f"| {model_type} | `{site.name}` | {rows} | {site.layers_after} | {row.full:.1e} | {row.lora:.1e} "
            f"| {row.cosine:.5f} | {row.rounding:.1e} |",
            flush=True,
        )
        if row.full < 1e-4 and row.lora < 1e-4:
            right.append(model_type)
        else:
            wrong.append((model_type, change_by_padding(model_type)))
    print(f"\n{len(right)} model types have an error below 1e-4 in full and with LoRA.\n")
    for model_type, change in wrong:
        print(f"`{model_type}` does not: padding a row changes its own logits by {change:.0e} of their size.\n")
    print("## Not included\n\n| model type | why |\n| --- | --- |")
    for model_type, why in left_out:
        print(f"| {model_type} | {why} |")


if __name__ == "__main__":
    main()
