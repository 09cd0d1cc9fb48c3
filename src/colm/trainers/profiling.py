"""Profile where a step's time goes: a table by stage and by operation, and a trace."""

from __future__ import annotations

import logging
from bisect import bisect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, schedule
from transformers import TrainerCallback

from colm.step.record import PROFILE_NAME, TRACE_NAME
from colm.step.stages import PREFIX

logger = logging.getLogger(__name__)

OPTIMIZER = "Optimizer.step#"
"""Prefix of an optimizer step's name in torch.profiler."""
STEP = "ProfilerStep"
OPERATIONS = 30
"""Number of operations in the table."""


class StepProfiler(TrainerCallback):
    """Profiles some early steps, each from the end of the previous step to its own end, so selection is included.

    Writes ``profile.txt``, with the time by stage and the most expensive operations, and ``profile_trace.json``, for
    chrome://tracing and ui.perfetto.dev.

    Args:
        folder: output folder; must exist when the last profiled step ends.
        skip: number of initial steps to skip, in which allocators, caches and kernels warm up.
        steps: number of steps to profile.

    Attributes:
        report: the table's text; None until the last profiled step ends.
    """

    def __init__(self, folder: Path, *, skip: int = 2, steps: int = 3) -> None:
        self.report: str | None = None
        self._folder = folder
        self._skip, self._steps = skip, steps
        self._profiler: profile | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start waiting for the first step to profile."""
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profiler = profile(
            activities=kinds,
            schedule=schedule(wait=self._skip - 1, warmup=1, active=self._steps, repeat=1),
            on_trace_ready=self._write,
        )
        self._profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Advance the profiler to the next step."""
        assert self._profiler is not None
        self._profiler.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the profiler; if training ended early, write the partial profile."""
        assert self._profiler is not None
        self._profiler.stop()
        if self.report is None:
            logger.warning("Training ended before step %d, so no profile was written.", self._skip + 1)

    def _write(self, profiler: profile) -> None:
        if self.report is not None:
            return
        averages = profiler.key_averages()
        known: Any = profiler.events() or ()  # type: ignore[no-untyped-call]
        events = [event for event in known if event.device_type == DeviceType.CPU]  # of ranges, the device has a shadow
        on_device = any(event.kernels for event in events)
        steps = [event for event in events if event.name.startswith(STEP)]
        count = len(steps)
        if not count:
            return
        whole = sum(event.time_range.elapsed_us() for event in steps) / 1000  # wall clock, waiting included
        times = time_by_stage(events, on_device=on_device)
        stages = [(name.removeprefix(PREFIX), time / count) for name, time in times.items()]
        rest = whole / count - sum(time for _, time in stages)
        stages += [("all else, waiting included", rest), ("step", whole / count)]
        clock = "time of the device's kernels; of the step and of all else, wall clock" if on_device else "wall clock"
        lines = [f"A step's time by stage, mean of {count} steps after {self._skip} ({clock})", ""]
        lines += [f"{name:<40} {time:10.1f} ms {time * count / whole:7.1%}" for name, time in stages]
        order = "self_cuda_time_total" if on_device else "self_cpu_time_total"
        table = averages.table(sort_by=order, row_limit=OPERATIONS, max_name_column_width=60)
        self.report = "\n".join(lines)
        (self._folder / PROFILE_NAME).write_text(f"{self.report}\n\n{table}\n", encoding="utf-8")
        profiler.export_chrome_trace(str(self._folder / TRACE_NAME))


def time_by_stage(events: Iterable[Any], *, on_device: bool) -> dict[str, float]:
    """Return the milliseconds of each stage and of the optimizer, in the order in which they began.

    Args:
        events: what ran on the host, as in `torch.profiler.profile.events`.
        on_device: count kernels instead of the host's time. A kernel belongs to the stage during which it was launched,
            by any thread: a backward has threads of its own, and what they launch is in no range of the main thread.
    """
    known = list(events)
    stages = [event for event in known if event.name.startswith((PREFIX, OPTIMIZER))]
    stages.sort(key=lambda event: event.time_range.start)
    times = dict.fromkeys((stage.name for stage in stages), 0.0)
    if not on_device:
        for stage in stages:
            times[stage.name] += stage.time_range.elapsed_us() / 1000
        return times
    starts = [stage.time_range.start for stage in stages]
    for event in known:
        last = bisect(starts, event.time_range.start) - 1
        if last >= 0 and event.time_range.start < stages[last].time_range.end:
            times[stages[last].name] += sum(kernel.duration for kernel in event.kernels) / 1000
    return times
