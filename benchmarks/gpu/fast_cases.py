"""The cases of the part "fast", in order of importance, and the H100 time that each takes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks that share parts with this suite

import torch
from step_parts import LORA, SMOLLM2, Shape, llama_config

from colm import SelectionConfig
from colm.config import PRESETS
from colm.lab.plan.outlook import Request
from colm.lab.plan.shapes import ModelSpec
from colm.lab.plan.steps import Rows

LABELLED = 0.75
"""Fraction of a row's tokens that are labeled, as `draw_pool` draws them."""

SHORTEST = 0.5
"""Tokens of the shortest row, as a fraction of the longest."""

SMALL = SMOLLM2._replace(dtype="bfloat16")
SHAPES = {
    "135M": SMALL,
    "1B": Shape(16, 2048, 8192, 32, 128_256, "bfloat16", kv_heads=8, tied=1),
    "8B": Shape(32, 4096, 14_336, 32, 128_256, "bfloat16", kv_heads=8),
}
TINY = Shape(layers=2, hidden=64, intermediate=128, heads=4, vocabulary=256, dtype="bfloat16", kv_heads=2)

RATE = 350e12
"""Estimated operations per second of an H100 in these models; a large product alone reaches twice as many."""

LAUNCH = 8e-6
"""Seconds that Python takes per kernel: below this, a small model's time does not fall with its rows."""

ADAPTED = 1.4
"""Estimated slowdown of a forward with adapters on all linear maps: many small passes over memory."""

LEAN = ("by length", "lean", "chunked", "fused")
"""Ways to train the plain Trainer's rows, see fast_lean.py: rows by length, and also one of three output heads."""

BUILDING = 2.0
"""Seconds to build a model with random weights, drawn on the device, and its optimizer."""

READING = 10.0
"""Seconds to read the file of SmolLM2's weights, once."""


class Case(NamedTuple):
    """One row of the tables. Sizes are for a step on one device."""

    model: str  # of SHAPES
    lora: bool
    tokens: int
    keep: int
    micro_batch: int  # rows of the pool per micro-batch
    rows: int = 128
    checkpointed: bool = False  # with reuse_forward
    rounds: int = 5
    once: tuple[str, ...] = ()  # ways timed only in the first round, because each takes seconds
    lean: bool = False  # with the ways of `LEAN`
    tiny: bool = False

    @property
    def name(self) -> str:
        trained = "LoRA" if self.lora else "full"
        return f"{self.model} {trained} T{self.tokens} K{self.keep}"

    @property
    def shape(self) -> Shape:
        return TINY if self.tiny else SHAPES[self.model]

    @property
    def micro_batches(self) -> int:
        return self.rows // self.micro_batch

    def selection(self, preset: str) -> SelectionConfig:
        """Return how a preset selects: by fraction, so that a pool of another size can warm up."""
        reuse = self.checkpointed and preset != "control"
        return SelectionConfig(**{**PRESETS[preset], "keep": self.keep / self.rows, "reuse_forward": reuse})

    def shrunk(self) -> Case:
        """Return the case as the rehearsal runs it: the same name at another size."""
        return self._replace(
            tokens=min(64, max(32, self.tokens // 32)),
            rows=16,
            micro_batch=4,
            keep=self.keep // 8,
            rounds=2 if self.once else 1,
            tiny=True,
        )

    def request(self, device: str) -> Request:
        """Return the request to `colm plan`: the run with `dtype: bfloat16` and `bf16: true`, as in the recipes."""
        spec = ModelSpec(
            "llama", "bfloat16", dict(LORA) if self.lora else None, torch.bfloat16, {} if self.checkpointed else None
        )
        selection = replace(self.selection("colm"), reuse_forward=False)
        return Request(
            spec, selection, Rows(self.tokens, LABELLED), self.micro_batch, self.micro_batches, device=device
        )

    def config(self) -> Any:
        return llama_config(self.shape, self.tokens)

    @property
    def seconds(self) -> float:
        """Estimate the seconds of the case on an H100: build, warm-up, and all rounds, without reading weights.

        If rounds take long, one is enough; more run if there is time.
        """
        ways = self._ways
        pairs = 2 * (ways["pool"] + ways["kept"]) / self.micro_batches
        once = 2 * ways["colm"] + 1 + ways["kept"] * (1 + len(LEAN) * self.lean)
        warm = 1.3 * ways["colm"] + pairs + once / self.micro_batches
        rounds = 1 if self.once else self.rounds
        return BUILDING + self._forward * (warm + rounds * sum(ways.values()))  # whole rows take longer, so 1.3

    @property
    def round_over_step(self) -> float:
        """How much longer the first round takes than a coreset step."""
        return sum(self._ways.values()) / self._ways["colm"]

    @property
    def later_over_first(self) -> float:
        """How long a later round takes, as a share of the first."""
        ways = self._ways
        return sum(value for way, value in ways.items() if way not in self.once) / sum(ways.values())

    @property
    def _ways(self) -> dict[str, float]:
        """The timed work of a round, in forwards of the pool without gradients."""
        trained = (2.0 if self.lora else 3.0) + self.checkpointed  # of the same rows
        share = self.keep / self.rows
        kept = share * trained
        step = 1 + kept - (share if self.checkpointed else 0)
        one = dict.fromkeys(("kept", "control", "plain", *(LEAN if self.lean else ())), kept)
        return {"colm": step, "matched": step, "floor": 1.0, "pool": trained, **one}

    @property
    def _forward(self) -> float:
        """Seconds of a forward of the pool without gradients."""
        shape = self.shape
        grouped = (shape.kv_heads or shape.heads) / shape.heads
        layer = shape.hidden**2 * (2 + 2 * grouped) + 3 * shape.hidden * shape.intermediate
        weights = shape.layers * layer + LABELLED * shape.hidden * shape.vocabulary
        operations = 2 * weights * self.rows * self.tokens * (1 + SHORTEST) / 2
        kernels = shape.layers * (110 if self.lora else 40) * self.micro_batches
        return max(operations / RATE * (ADAPTED if self.lora else 1.0), kernels * LAUNCH)


_DEAR = ("matched", "control", "plain")
CASES = (
    Case("135M", True, 512, 64, 32, lean=True),
    Case("8B", True, 512, 64, 16, checkpointed=True, rounds=2, once=_DEAR),
    Case("1B", True, 512, 64, 16, rounds=3, lean=True),
    Case("135M", False, 512, 64, 32, lean=True),
    Case("1B", True, 2048, 64, 4, rounds=2, once=_DEAR),
    Case("135M", True, 512, 32, 32),
    Case("8B", True, 512, 32, 16, checkpointed=True, rounds=1),
    Case("1B", True, 512, 32, 16, rounds=3),
    Case("135M", False, 512, 32, 32),
    Case("1B", True, 2048, 32, 4, rounds=1),
)

PROFILED = {"135M LoRA T512 K64": 6.0, "8B LoRA T512 K64": 12.0}
"""Seconds that a profiled step of the case takes, including rebuilding its model."""


def units(*, tiny: bool) -> list[tuple[str, Case, bool]]:
    """Return name, case and whether to profile it: two rows first, then a row whose vocabulary is large.

    A profile comes after its row, that of the largest model after the third row.
    """
    found = [(case.name, case.shrunk() if tiny else case, False) for case in CASES]
    small, large = ((f"{name} profile", case, True) for name, case, _ in found if name in PROFILED)
    return [*found[:2], small, found[2], large, *found[3:]]


if __name__ == "__main__":
    for name, case, profiled in units(tiny=False):
        print(f"{name:28} {PROFILED[case.name] if profiled else case.seconds:6.1f} s")
    print(f"{'reading SmolLM2':28} {READING:6.1f} s")
