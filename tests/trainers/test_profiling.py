"""A step's time by stage, on a device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from colm.trainers.profiling import time_by_stage


def event(name: str, start: int, end: int, *kernels: int) -> Any:
    """Return what the host did for some microseconds, with the durations of the kernels that it launched."""
    span = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    return SimpleNamespace(name=name, time_range=span, kernels=[SimpleNamespace(duration=each) for each in kernels])


EVENTS = [
    event("ProfilerStep*", 0, 1000),
    event("aten::mm", 310, 320, 700),  # on a thread of the backward
    event("colm: training", 200, 600),
    event("aten::mm", 210, 220, 300),
    event("colm: picking", 0, 100),
    event("aten::sort", 10, 90, 5, 15),
    event("Optimizer.step#AdamW.step", 700, 800),
    event("aten::_fused_adamw_", 710, 790, 60),
    event("aten::zero_", 900, 910, 8),
]


def test_kernels_belong_to_the_stage_that_launched_them_in_any_thread() -> None:
    found = time_by_stage(EVENTS, on_device=True)
    assert found == {"colm: picking": 0.02, "colm: training": 1.0, "Optimizer.step#AdamW.step": 0.06}
    assert list(found) == ["colm: picking", "colm: training", "Optimizer.step#AdamW.step"]


def test_without_a_device_a_stage_takes_the_time_of_the_host() -> None:
    found = time_by_stage(EVENTS, on_device=False)
    assert found == {"colm: picking": 0.1, "colm: training": 0.4, "Optimizer.step#AdamW.step": 0.1}
