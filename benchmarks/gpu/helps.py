"""Does it help: SmolLM2-135M with LoRA on fourteen real sources, each method over seeds, at equal steps and equal time.

    python benchmarks/gpu/helps.py --results RESULTS --data DATA --seconds 300

All runs of a seed begin with the same adapter and see the same pools, but for those that order the rows by themselves:
the plain Trainer and balanced orders. Every method has its own learning rate and a linear schedule that ends with its
run. Runs are ordered so that each minute yields the most useful paired table.
"""

from __future__ import annotations

import platform
import sys
import time
import traceback
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import transformers
from figures import UNFINISHED, Task, begin
from helps_cells import PLAIN
from helps_clock import OutOfTimeError
from helps_rows import PLACE
from helps_runs import Bench
from helps_trainers import Run, Size

from colm.errors import one_line

GPU = Size(steps=100, pool=128, every=25, warmup=5, batch=128, new_tokens=128)
TINY = Size(steps=6, pool=16, every=2, warmup=1, batch=64, new_tokens=8)
SEEDS, TINY_SEEDS = 5, 2


class Method(NamedTuple):
    """One column of the table."""

    method: str  # of colm.lab.study.methods
    share: float  # fraction of the pool that it keeps
    step: float  # estimated seconds per step on an H100, until a step is measured


BALANCED = "small_sources=none,balance=0.7"
"""At a quarter, this replaces the rule that keeps small sources whole: nine of the fourteen are small and have 25.4 %
of the rows, so the rule would fill the coreset with them and leave nothing to choose. On the CPU, matching with these
settings was the best way to keep 32 of 128 rows of this mixture (docs/results/headline_real.md)."""

FIRST = {
    "plain": Method(PLAIN, 0.25, 0.14),
    "random": Method("random", 0.25, 0.13),
    "control": Method(f"control+{BALANCED}", 0.25, 0.13),
    "control-ordered": Method(f"control+{BALANCED},order=balanced", 0.25, 0.13),
    "matched": Method(f"matched+{BALANCED}", 0.25, 0.26),
}
SECOND = {
    "control-half-ordered": Method("control+keep=0.5,order=balanced", 0.5, 0.15),
    "control-half": Method("control+keep=0.5", 0.5, 0.15),
    "pool": Method("random-n", 1.0, 0.22),
    "colm": Method(f"colm+{BALANCED}", 0.25, 0.26),
    "matched-half": Method("matched+keep=0.5", 0.5, 0.28),
}
"""At a half the small sources leave room for others, so matching and its control use the rule. Left out, for their
time: the paper's estimate (`colm-spsa`) and random rows at a half, the least interesting ones on a CPU."""

METHODS = FIRST | SECOND

RATE = 1.0e-3
"""For methods that keep a quarter. Others multiply it by the square root of their rows over a quarter's: the noise of a
mean falls with that root, and Adam's step does not shrink with it. No rate was tuned, neither this one nor a method's;
so a difference between methods that keep different numbers of rows is also one between these rates."""

OVERHEAD, ANSWERS = 3.0, 8.0
"""Seconds that a run takes in addition to its steps, and that one model's answers take, until measured."""

END = 2.0
"""Seconds reserved for the end of the part."""

TOLERANCE = 1e-3
"""For a row's loss computed in two ways, both in float32: attention kernels differ by less than a hundredth of this."""

PLANTED = "matched"
"""The method that sees other pools for seed 0 if a wrong result is planted."""


def order(seeds: int) -> Iterator[tuple[dict[str, Method], int] | None]:
    """Yield groups of methods with their seed; None marks the time for the questions.

    The first group comes first for two seeds, since one seed alone has no interval. Then the more expensive group, so
    that its first figures do not wait for the fifth seed.
    """
    yield from ((FIRST, seed) for seed in range(min(2, seeds)))
    yield SECOND, 0
    if seeds > 2:
        yield FIRST, 2
    yield None
    if seeds > 1:
        yield SECOND, 1
    for seed in range(3, seeds):
        yield FIRST, seed
        yield SECOND, seed - 1
    if seeds > 2:
        yield SECOND, seeds - 1


class Pace:
    """How long a run takes: as measured for its method, else from the table, scaled by other methods' measurements."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._measured: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Note a whole run's seconds."""
        self._measured[name] = max(seconds, self._measured.get(name, 0.0))

    def seconds(self, name: str) -> float:
        """Return the seconds allowed for a run of the method: a tenth more than the last one took."""
        if name in self._measured:
            return 1.1 * self._measured[name]
        ratios = [seconds / self._guess(other) for other, seconds in self._measured.items()]
        return self._guess(name) * (sum(ratios) / len(ratios) if ratios else 1.0)

    def _guess(self, name: str) -> float:
        return OVERHEAD + self._steps * METHODS[name].step


class Part:
    """The part's state within one slice of time."""

    def __init__(self, task: Task) -> None:
        self.task, self.figures = task, task.figures
        self.size = TINY if task.tiny else GPU
        self.pace = Pace(self.size.steps)
        self.answer_seconds = ANSWERS
        self.pairs: dict[tuple[int, str], tuple[str, str]] = {}  # seed and figure -> its first run of this slice
        self.left = False  # there was no time for something
        start = time.monotonic()
        self.bench = Bench(task.data / PLACE, task.device, self.size)
        loaded = time.monotonic() - start
        cuda = task.device.type == "cuda"
        self.card = torch.cuda.get_device_name() if cuda else platform.machine()
        self.figures.add(
            "setting",
            card=self.card,
            torch=torch.__version__,
            transformers=transformers.__version__,
            tiny=task.tiny,
            load_seconds=round(loaded, 2),
            rows=self.bench.rows.about["rows"],
            small_sources=self.bench.rows.about["small_sources"],
            small_share=self.bench.rows.about["small_share"],
        )

    def begin(self) -> None:
        """Measure the model before training, and warm up the GPU."""
        if not self.figures.done("base"):
            try:
                losses, apart = self.bench.base_losses()
                self.figures.add("base", losses=losses, apart=apart)
                if not apart <= TOLERANCE:
                    text = f"losses of the head on labeled positions differ by {apart:.5f} from those of full logits"
                    self.figures.fault("evaluation", text)
            except Exception as error:  # the runs have losses of their own
                self.fail("base", error)
        start = time.monotonic()
        try:
            for name in ("plain", "matched"):
                self.bench.warm_up(self.make_run(name, 0))
        except Exception as error:  # the measured runs will report their own errors
            self.fail("warm-up", error)
        print(f"warm-up: {time.monotonic() - start:.1f} s", flush=True)

    def spare(self) -> float:
        """Return the seconds left, minus the time to finish."""
        return self.task.left() - END

    def make_run(self, name: str, seed: int) -> Run:
        """Return the run of a method and a seed."""
        rate = RATE * (METHODS[name].share / 0.25) ** 0.5
        wrong = self.task.wrong and name == PLANTED and seed == 0
        method = METHODS[name]
        return Run(name, method.method, method.share, round(rate, 6), seed, seed + 1000 if wrong else seed)

    def train(self, name: str, seed: int) -> None:
        """Do one run, unless it is done or there is no time."""
        run = self.make_run(name, seed)
        if self.figures.done(run.unit):
            return
        if self.spare() <= 0 or not self.task.fits(self.pace.seconds(name)):
            self.left = True
            return
        start = time.monotonic()

        def tell(line: Any) -> None:
            self.figures.add(f"{run.unit}@{line['step']}", **line)

        try:
            found, model = self.bench.train(run, self.size.steps, tell=tell, left=self.spare)
            self.bench.keep_adapter(run, model)
        except OutOfTimeError as error:
            print(f"{run.unit}: no time after {error}", flush=True)
            self.left = True
            return
        except Exception as error:  # a fault in one method must not lose the figures of the others
            self.fail(run.unit, error)
            return
        self.pace.add(name, time.monotonic() - start)
        wrong = self.check(run, found)
        if wrong:
            self.figures.fault(run.unit, wrong)
        else:
            self.figures.add(run.unit, name=name, card=self.card, **found)

    def check(self, run: Run, found: dict[str, Any]) -> str | None:
        """Return what is wrong with a run's figures, or None."""
        expected = run.rows(self.size) * self.size.steps
        if found["rows"] != expected:
            return f"it trained on {found['rows']} rows and not on {expected}"
        if found["nonfinite"]:
            return f"{found['nonfinite']} rows had non-finite features"
        for key, what in (("pools", "pools"), ("init", "first adapter")):
            if found[key] is None:  # it orders the rows by itself
                continue
            other, first = self.pairs.setdefault((run.seed, key), (run.unit, found[key]))
            if found[key] != first:
                return f"its {what} ({found[key]}) differ from those of {other} ({first}), so they are not a pair"
        return None

    def answer(self, runs: list[Run | None]) -> None:
        """Evaluate the models not yet evaluated, if their adapters are here and there is time."""
        for run in runs:
            unit = f"{run.unit if run else 'base'}/answers"
            if self.figures.done(unit):
                continue
            if run and not (self.figures.done(run.unit) and self.bench.adapter_path(run).exists()):
                continue
            if self.spare() <= 0 or not self.task.fits(self.answer_seconds):
                return
            start = time.monotonic()
            try:
                found = self.bench.answer(run)
                self.figures.add(unit, name=run.name if run else "base", seed=run.seed if run else None, **found)
            except Exception as error:  # as in training
                self.fail(unit, error)
            self.answer_seconds = 1.2 * (time.monotonic() - start)

    def fail(self, unit: str, error: Exception) -> None:
        """Write a fault; the whole trace goes to the log.

        Raises:
            RuntimeError: this process has lost the GPU, so nothing else can be measured.
        """
        traceback.print_exception(error)
        self.figures.fault(unit, f"{type(error).__name__}: {one_line(error)}")
        if self.task.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> int:
    """Run as much as time allows."""
    task = begin("helps", __doc__ or "")
    steps = list(order(TINY_SEEDS if task.tiny else SEEDS))
    groups = [step for step in steps if step is not None]
    units = [f"seed {seed}/{name}" for group, seed in groups for name in group]
    if all(map(task.figures.done, units)):
        return 0
    if task.tiny:
        torch.set_num_threads(1)  # on a busy machine, threads wait for each other longer than such a model computes
    part = Part(task)
    part.begin()
    asked = [None, *(part.make_run(name, seed) for group, seed in groups for name in group)]
    first = [run for run in asked if run is None or (run.name in FIRST and run.seed < 2)]
    for step in steps:
        if step is None:
            part.answer(first)
            continue
        for name in step[0]:
            part.train(name, step[1])
    part.answer(asked)  # uses the time left at the end, too short for a run
    return UNFINISHED if part.left else 0


if __name__ == "__main__":
    sys.exit(main())
