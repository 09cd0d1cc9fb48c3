"""Where a coreset step's time goes, from the profiler's raw events: its tables would take longer than the step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

TOP = 12
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class Event(NamedTuple):
    """What the profiler saw, in nanoseconds."""

    name: str
    on_device: bool
    start: int
    end: int
    number: int  # of an operator; its kernels refer to this number
    operator: int  # of a kernel or a CUDA call; 0 for an operator
    thread: int


def profile_step(action: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Run `action` once under the profiler and return its figures."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize()
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    return summarise(list(_events(profiler.profiler.kineto_results.events())), wall)


def _events(found: Iterable[Any]) -> Iterable[Event]:
    for event in found:
        # Annotated code ranges have a shadow on the device, which is not work.
        if event.is_user_annotation() or event.is_hidden_event() or event.name().startswith(("colm: ", "[memory]")):
            continue
        start = event.start_ns()
        yield Event(
            event.name(),
            event.device_type() != DeviceType.CPU,
            start,
            start + event.duration_ns(),
            event.correlation_id(),
            event.linked_correlation_id(),
            event.start_thread_id(),
        )


def summarise(events: list[Event], wall: float) -> dict[str, Any]:
    """Return operators by their own time on the device, or on the CPU without a device, and how busy it was."""
    device = [event for event in events if event.on_device]
    calls = [event for event in events if not event.on_device]
    by_kernel: dict[str, int] = {}
    by_operator: dict[str, int] = {}
    if device:
        names = {event.number: event.name for event in calls if event.operator == 0}
        for event in device:
            name = names.get(event.operator, event.name) if event.operator else event.name
            _add(by_operator, name, event.end - event.start)
            _add(by_kernel, event.name[:80], event.end - event.start)
    else:
        _add_own_times(by_operator, [event for event in calls if event.operator == 0])
    total = sum(by_operator.values())
    busy = _covered(device)
    return {
        "kernels_seen": len(device),
        "wall_seconds": round(wall, 4),
        "device_seconds": round(total / 1e9, 4),
        "idle_share": round(1 - busy / 1e9 / wall, 4) if device else None,
        "launches": sum(event.name.startswith(LAUNCHES) for event in calls),
        "waits": sum(event.name in WAITS for event in calls),
        "operators": _shares(by_operator, total),
        "kernels": _shares(by_kernel, total),
    }


def _add(times: dict[str, int], name: str, taken: int) -> None:
    times[name] = times.get(name, 0) + taken


def _shares(times: dict[str, int], total: int) -> list[tuple[str, float]]:
    largest = sorted(times.items(), key=lambda item: -item[1])[:TOP]
    return [(name, round(taken / total, 4)) for name, taken in largest]


def _covered(events: list[Event]) -> int:
    """Return the nanoseconds during which at least one of the events ran."""
    covered, until = 0, 0
    for event in sorted(events, key=lambda event: event.start):
        covered += max(0, event.end - max(event.start, until))
        until = max(until, event.end)
    return covered


def _add_own_times(times: dict[str, int], calls: list[Event]) -> None:
    """Add each operator's time, excluding the operators that it calls."""
    open_calls: dict[int, list[Event]] = {}
    for event in sorted(calls, key=lambda event: (event.thread, event.start, -event.end)):
        stack = open_calls.setdefault(event.thread, [])
        while stack and stack[-1].end <= event.start:
            stack.pop()
        if stack:
            _add(times, stack[-1].name, event.start - event.end)
        _add(times, event.name, event.end - event.start)
        stack.append(event)
