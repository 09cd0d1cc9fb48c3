"""Names of the stages of a step, as shown by a profiler."""

from __future__ import annotations

from torch.profiler import record_function

PREFIX = "colm: "
FETCH, PASS, PICK, TAKE, TRAIN = "fetching the pool", "selection pass", "picking", "taking rows", "training"
NOISE = "measuring the noise scale"
EVALUATE = "evaluation"


def stage(name: str) -> record_function:
    """Return a context that `torch.profiler` shows under this name; without a profiler it costs microseconds."""
    return record_function(PREFIX + name)
