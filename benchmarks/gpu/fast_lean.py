"""The plain Trainer's rows in a lean step: by length, with the output head and the loss on labeled positions only."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fast_cases import Case
from step_parts import Batch, train_plainly

from colm.errors import one_line
from colm.lean import LeanHead
from colm.losses import mean_over_examples

HEADS: dict[str, dict[str, Any]] = {"lean": {}, "chunked": {"chunk_tokens": 0}, "fused": {"fused": True}}
"""Ways of `colm.SelectionConfig.train_head`, as options of `LeanHead`."""

Train = Callable[[list[Batch]], None]


def make_ways(model: Any, optimizer: Any, case: Case) -> tuple[dict[str, Train], dict[str, str]]:
    """Return what trains micro-batches, by way, and why other ways are left out; both empty for most cases.

    Only the fused head may be: its package or a compiler may be missing, and its kernel may fail.
    """
    if not case.lean:
        return {}, {}
    ways: dict[str, Train] = {"by length": partial(train_plainly, model, optimizer=optimizer)}
    missing: dict[str, str] = {}
    for way, options in HEADS.items():
        try:
            head = LeanHead(model, **options)
        except Exception as error:  # a compiler's are of any kind
            if way != "fused":
                raise
            missing[way] = one_line(error)
            continue
        ways[way] = partial(train_lean, model, head, optimizer=optimizer)
    return ways, missing


def train_lean(model: Any, head: LeanHead, batches: list[Batch], optimizer: Any = None) -> None:
    """Accumulate the gradients of the example mean as `CoresetTrainer` does, and run the optimizer step."""
    model.train()
    rows = sum(len(batch["labels"]) for batch in batches)
    for batch in batches:
        losses = head(model, {**batch, "use_cache": False})
        mean_over_examples(losses, batch["labels"], num_examples=rows).backward()
    if optimizer is not None:
        optimizer.step()
    model.zero_grad()
