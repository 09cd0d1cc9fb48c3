"""Fast and small: a coreset step's time and memory compared with its ideal, the pool, plain training and the plan.

    python benchmarks/gpu/fast.py --results DIR --data DIR --seconds 120

Each case is a line with seconds and peaks of the selection's floor, training the kept rows, the step with medoids and
with matching, the control, training the pool, and the plain Trainer on the same number of rows; some cases also have
the plain Trainer's rows in lean steps. Every round runs these in turn on the same rows, including the optimizer step.
Before the rounds each way runs once on rows like those of `colm plan`, and its peaks are compared with the plan's.
Nothing is compiled: the Trainer does not compile by default, reuse_forward refuses it, and compiling would take longer
than everything else.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING, Any

import torch
from figures import UNFINISHED, Task, begin

if TYPE_CHECKING:
    from fast_cases import Case
    from gauges import Gauges

ALLOWED = 0.15
"""Allowed relative difference between the allocator's peak and the plan's."""

MARGIN = 3.0
"""Seconds reserved for freeing memory and ending."""


def main() -> int:
    # The clock of the slice starts before the libraries are loaded, which takes seconds.
    task = begin("fast", __doc__)
    import planned
    from fast_cases import PROFILED, READING, units
    from gauges import Gauges

    if task.tiny:
        torch.set_num_threads(1)  # more threads wait for each other longer than they work
    gauges = Gauges(task.device)
    peaks = planned.read(task.data, tiny=task.tiny)
    unfinished = read = False
    for name, case, profiled in units(tiny=task.tiny):
        if task.figures.done(name):
            continue
        needed = PROFILED[name.removesuffix(" profile")] if profiled else case.seconds
        if case.model == "135M" and not read:
            needed += READING
        if not task.fits(needed + MARGIN):
            unfinished = True
            continue
        read = read or case.model == "135M"
        error = _try(task, name, case, profiled, peaks, gauges)
        if error is not None:
            task.figures.fault(name, error)
            unfinished = True
            if "CUDA error" in error:  # the context is lost, so everything that follows would fail
                break
        _free()
    return UNFINISHED if unfinished else 0


def _try(
    task: Task, name: str, case: Case, profiled: bool, peaks: dict[str, dict[str, float]], gauges: Gauges
) -> str | None:
    """Measure a unit; return the error as text: the exception itself would keep the model alive."""
    try:
        if profiled:
            _profile(task, name, case)
        else:
            _measure(task, name, case, peaks.get(name), gauges)
    except Exception as error:  # out of memory, or any library error: the next unit may still work
        place, trace = "", error.__traceback__
        while trace is not None:
            place, trace = f"{trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}", trace.tb_next
        first = str(error).strip().splitlines()
        return f"{type(error).__name__} in {place}: {first[0] if first else ''}"[:500]
    return None


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _measure(task: Task, name: str, case: Case, planned: dict[str, float] | None, gauges: Gauges) -> None:
    from fast_lean import make_ways
    from fast_rounds import Rounds, build, make_steps, warm_up

    built = build(case, task.device)
    start = time.perf_counter()
    steps = make_steps(built, case)
    lean, missing = make_ways(built.model, built.optimizer, case)
    measured, step_seconds = warm_up(built, case, steps, lean)
    warmed = time.perf_counter() - start
    if not task.fits(step_seconds * case.round_over_step):
        raise TimeoutError(f"a coreset step takes {step_seconds:.1f} s, so no round fits in the remaining time")
    rounds = Rounds(built, case, steps, gauges, lean)
    start = time.monotonic()
    rounds.run()
    later = (time.monotonic() - start) * case.later_over_first
    while rounds.done < case.rounds and task.fits(later + MARGIN):  # otherwise fewer rounds; the line says how many
        rounds.run()
    line: dict[str, Any] = {
        **{key: getattr(case, key) for key in ("model", "lora", "tokens", "rows", "keep", "micro_batch")},
        "checkpointed": case.checkpointed,
        "on_gpu": task.device.type == "cuda",
        "parameters": sum(parameter.numel() for parameter in built.model.parameters()),
        "build_seconds": round(built.seconds, 2),
        "warm_up_seconds": round(warmed, 2),
        "missing": missing,
        **rounds.figures(),
    }
    if task.device.type == "cuda":
        line |= {"gpu": torch.cuda.get_device_name()}
    _compare(task, f"{name} plan", planned, measured)
    task.figures.add(name, **line)


def _compare(task: Task, unit: str, planned: dict[str, float] | None, measured: dict[str, int]) -> None:
    """Write the planned and the measured peaks; a fault if they are too far apart."""
    if planned is None:
        task.figures.fault(unit, "there is no plan for this case: planned.json is missing, or is for the other size")
        return
    factor = 2.0 if task.wrong else 1.0
    ways = {
        way: {
            "planned_mib": round(factor * planned[way] / 2**20, 2),
            "measured_mib": round(held / 2**20, 2),
            "ratio": round(held / (factor * planned[way]), 4),
            "near": abs(held / (factor * planned[way]) - 1) <= ALLOWED,
        }
        for way, held in measured.items()
    }
    task.figures.add(unit, ways=ways, on_gpu=task.device.type == "cuda")
    far = [f"{way} {values['ratio']:.2f}" for way, values in ways.items() if not values["near"]]
    if far:
        task.figures.fault(
            unit, f"the allocator's peak over the plan's is off by more than {ALLOWED:.0%}: {', '.join(far)}"
        )


def _profile(task: Task, name: str, case: Case) -> None:
    from fast_profile import profile_step
    from fast_rounds import Rounds, build, make_steps
    from gauges import Gauges

    built = build(case, task.device)
    steps = make_steps(built, case)
    pool = Rounds(built, case, steps, Gauges(torch.device("cpu"))).draw(0)
    step = steps["colm"]
    step.run(pool[:1])
    step.run(pool[:2])  # only two micro-batches: a whole step has a million events
    found = profile_step(lambda: step.run(pool[:2]), task.device)
    on_gpu = task.device.type == "cuda"
    task.figures.add(name, rows=2 * case.micro_batch, on_gpu=on_gpu, **found)
    if on_gpu and not found["kernels_seen"]:
        task.figures.fault(name, "the profiler saw no kernels, so the times are those of CPU operators")


if __name__ == "__main__":
    raise SystemExit(main())
