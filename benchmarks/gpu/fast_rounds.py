"""One case of "fast": its model, the warm-up that is compared with the plan, and the timed rounds."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks that share parts with this suite

import torch
from accelerate.utils import convert_outputs_to_fp32
from counting import peak_bytes, peak_saved_bytes
from fast_cases import LABELLED, LEAN, SHORTEST, SMALL, Case
from fast_lean import Train
from gauges import Gauges, middle
from step_parts import (
    Batch,
    build_llama,
    build_model,
    collate,
    draw_pool,
    group_by_length,
    run_floor,
    take_rows,
    train,
    train_plainly,
)
from step_timed import Step, clock

from colm.errors import ConfigError
from colm.lab.plan.steps import Rows
from colm.models import load_model

MIB = 2**20


def _step_over_plain(way: str, seconds: dict[str, float], peaks: dict[str, float]) -> float:
    return seconds[way] / seconds["plain"]


def _memory_over_plain(way: str, seconds: dict[str, float], peaks: dict[str, float]) -> float:
    return peaks[way] / peaks["plain"]


RATIOS: dict[str, Callable[[dict[str, float], dict[str, float]], float]] = {
    "step_over_ideal": lambda s, m: s["colm"] / (s["floor"] + s["kept"]),
    "selection_over_floor": lambda s, m: s["selection"] / s["floor"],
    "memory_over_coreset": lambda s, m: m["colm"] / m["kept"],
    "memory_over_pool": lambda s, m: m["colm"] / m["pool"],
    "step_over_pool": lambda s, m: s["colm"] / s["pool"],
    "step_over_plain": lambda s, m: s["colm"] / s["plain"],
    "matched_over_ideal": lambda s, m: s["matched"] / (s["floor"] + s["kept"]),
    "control_over_plain": lambda s, m: s["control"] / s["plain"],
    **{f"{way}: step": partial(_step_over_plain, way) for way in LEAN},
    **{f"{way}: memory": partial(_memory_over_plain, way) for way in LEAN},
}
"""Of a round's seconds and peaks by way. Peaks exclude earlier allocations: weights and the optimizer's state."""


class Built(NamedTuple):
    """A model as the Trainer prepares it with `bf16: true`: autocast around the forward, outputs in float32."""

    model: Any
    optimizer: Any
    device: torch.device
    before: int  # bytes allocated without the model
    seconds: float


@cache
def pretrained() -> Any:
    """Return SmolLM2 on the CPU, read once; with random weights if the real ones are not installed."""
    try:
        return load_model("demo", dtype=SMALL.dtype)
    except ConfigError:
        return build_llama(SMALL, 8192)


def build(case: Case, device: torch.device) -> Built:
    start = time.perf_counter()
    on_gpu = device.type == "cuda"
    if on_gpu:  # the context and the matrix library take memory that does not belong to a model
        warm = torch.ones(256, 256, device=device, dtype=torch.bfloat16, requires_grad=True)
        (warm @ warm).sum().backward()
        torch.cuda.synchronize()
        del warm
    before = torch.cuda.memory_allocated() if on_gpu else 0
    real = copy.deepcopy(pretrained()) if case.shape == SMALL else None
    model = build_model(case.shape, lora=case.lora, tokens=case.tokens, device=device, pretrained=real)
    if case.checkpointed:
        if case.lora:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    model.train()
    model.forward = convert_outputs_to_fp32(torch.autocast(device.type, dtype=torch.bfloat16)(model.forward))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    clock()
    return Built(model, optimizer, device, before, time.perf_counter() - start)


def make_steps(built: Built, case: Case) -> dict[str, Step]:
    names = ("colm", "matched", "control")
    return {name: Step(built.model, case.selection(name), built.optimizer) for name in names}


def warm_up(built: Built, case: Case, steps: dict[str, Step], lean: dict[str, Train]) -> tuple[dict[str, int], float]:
    """Run everything that is timed later, on rows like the plan's.

    Returns:
        The peaks in bytes, including everything held, and the seconds of a coreset step.
    """
    rows = Rows(case.tokens, LABELLED)

    def batches(count: int, number: int) -> list[Batch]:
        drawn = [rows.batch(count) for _ in range(number)]
        for batch in drawn:
            batch["input_ids"] = torch.randint(case.shape.vocabulary, batch["input_ids"].shape)
            batch["labels"] = batch["input_ids"].masked_fill(batch["labels"] == -100, -100)
        return [{key: value.to(built.device) for key, value in batch.items()} for batch in drawn]

    pool = batches(case.micro_batch, case.micro_batches)
    kept = batches(case.keep // case.micro_batches, min(2, case.micro_batches))
    train(built.model, kept, built.optimizer)  # creates the optimizer's state
    for step in (steps["colm"], steps["matched"]):  # gives both a history, and loads the solver libraries
        step.run(pool[:1])
    run_floor_as_trained(built, pool[:1])
    train_plainly(built.model, kept[:1], built.optimizer)
    for way in lean.values():
        way(kept[:1])
    peaks = {
        "pool": _held(built, lambda: train(built.model, pool[:2], built.optimizer)),
        "coreset_rows": _held(built, lambda: train(built.model, kept, built.optimizer)),
    }
    start = time.perf_counter()
    peaks["coreset_step"] = _held(built, lambda: steps["colm"].run(pool))
    return peaks, time.perf_counter() - start


def run_floor_as_trained(built: Built, batches: list[Batch]) -> None:
    """Run the floor in the autocast that normally surrounds the model's forward."""
    with torch.autocast(built.device.type, dtype=torch.bfloat16):
        run_floor(built.model, batches)


def _held(built: Built, action: Callable[[], Any]) -> int:
    """Return the peak bytes held while `action` runs, including weights and the optimizer's state."""
    if built.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - built.before
    states = [value for state in built.optimizer.state.values() for value in state.values()]
    held = {tensor.untyped_storage().data_ptr(): tensor for tensor in [*built.model.parameters(), *states]}
    return peak_bytes(action) + sum(tensor.untyped_storage().nbytes() for tensor in held.values())


class Rounds:
    """The timed rounds: each runs all ways in turn on the same rows."""

    def __init__(
        self, built: Built, case: Case, steps: dict[str, Step], gauges: Gauges, lean: dict[str, Train] | None = None
    ) -> None:
        self.built, self.case, self.steps, self.gauges = built, case, steps, gauges
        self.lean = lean or {}
        self.seconds: dict[str, list[float]] = {}
        self.bytes: dict[str, list[float]] = {}
        self.ratios: dict[str, list[float]] = {}
        self.readings: dict[str, list[dict[str, float]]] = {}
        self.reserved = self.done = 0

    def run(self) -> None:
        """Run one more round."""
        case, model, optimizer = self.case, self.built.model, self.built.optimizer
        pool = self.draw(self.done)
        seconds: dict[str, float] = {}
        peaks: dict[str, float] = {}

        def observe(way: str, action: Callable[[], Any]) -> Any:
            if way in case.once and self.done:
                return None
            seconds[way], peaks[way], result = self._observe(action)
            if self.gauges.quick and (reading := self.gauges.read()):
                self.readings.setdefault(way, []).append(reading)
            return result

        step = self.steps["colm"]
        seconds["selection"], seconds["picking"], seconds["training"] = observe("colm", lambda: step.run(pool))
        batches = group_by_length(take_rows(pool, list(range(case.rows))), case.micro_batches)
        observe("floor", lambda: run_floor_as_trained(self.built, batches))
        kept = group_by_length(take_rows(pool, step.rows), case.micro_batches)
        observe("kept", lambda: train(model, kept, optimizer))
        observe("matched", lambda: self.steps["matched"].run(pool))
        observe("control", lambda: self.steps["control"].run(pool))
        observe("pool", lambda: train(model, pool, optimizer))
        if not self.gauges.quick and (reading := self.gauges.read()):
            self.readings.setdefault("pool", []).append(reading)
        ends = accumulate(case.keep // case.micro_batches for _ in range(case.micro_batches))
        rows = take_rows(pool, list(range(case.keep)))
        plain = [collate(rows[start:end]) for start, end in pairwise([0, *ends])]
        observe("plain", lambda: train_plainly(model, plain, optimizer))
        by_length = group_by_length(rows, case.micro_batches)
        for name, way in self.lean.items():
            observe(name, partial(way, by_length))
        self._note(seconds, peaks)

    def draw(self, seed: int) -> list[Batch]:
        case = self.case
        return draw_pool(
            case.shape,
            rows=case.rows,
            micro_batches=case.micro_batches,
            tokens=case.tokens,
            shortest=SHORTEST,
            seed=seed,
            device=self.built.device,
        )

    def _observe(self, action: Callable[[], Any]) -> tuple[float, float, Any]:
        """Return seconds, peak in bytes above the earlier allocation, and the action's result."""
        results: list[Any] = []
        if self.built.device.type != "cuda":
            start = clock()
            peak = peak_saved_bytes(lambda: results.append(action()), self.built.model)
            return clock() - start, float(peak), results[0]
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        there, start = torch.cuda.memory_allocated(), clock()
        results.append(action())
        taken = clock() - start
        self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())
        return taken, float(torch.cuda.max_memory_allocated() - there), results[0]

    def _note(self, seconds: dict[str, float], peaks: dict[str, float]) -> None:
        self.done += 1
        for name, value in seconds.items():
            self.seconds.setdefault(name, []).append(value)
        for name, value in peaks.items():
            self.bytes.setdefault(name, []).append(value)
        for name, ratio in RATIOS.items():
            try:
                value = ratio(seconds, peaks)
            except (KeyError, ZeroDivisionError):  # a way that is timed once, or a clock too coarse for a tiny model
                continue
            self.ratios.setdefault(name, []).append(value)

    def figures(self) -> dict[str, Any]:
        return {
            "rounds": self.done,
            "ratios": {name: spread(values) for name, values in self.ratios.items()},
            "seconds": {name: spread(values) for name, values in self.seconds.items()},
            "mib": {name: round(statistics.median(values) / MIB, 2) for name, values in self.bytes.items()},
            "reserved_mib": round(self.reserved / MIB) or None,
            "gauges": {name: middle(readings) for name, readings in self.readings.items()},
        }


def spread(values: list[float]) -> list[float]:
    """Return median, minimum and maximum."""
    return [float(f"{value:.4g}") for value in (statistics.median(values), min(values), max(values))]
