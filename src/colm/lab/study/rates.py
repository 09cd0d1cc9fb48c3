"""Find each method's learning rate: that of the lowest final macro loss on a seed that the comparison does not use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from math import inf, isfinite
from pathlib import Path
from typing import NamedTuple

from colm.lab.run.arguments import fill_training
from colm.lab.run.folder import RunFolder
from colm.lab.study.planning import SEARCH
from colm.lab.study.results import figures
from colm.step.files import replace_file
from colm.step.record import RATES_NAME, SUMMARY_NAME


class Found(NamedTuple):
    """A method's learning rate."""

    best: float
    losses: dict[float, float]  # rate -> final macro loss, the smallest rate first; infinite if the run diverged

    @property
    def at_end(self) -> bool:
        """Whether a better rate may lie beyond those that were tried."""
        return len(self.losses) > 1 and self.best in (min(self.losses), max(self.losses))


def free_seed(seeds: Sequence[int]) -> int:
    """Return the first seed that is not among these.

    >>> free_seed([1, 2, 0])
    3
    """
    return next(seed for seed in count() if seed not in seeds)


def find_rates(out: Path, methods: Sequence[str], seed: int) -> dict[str, Found]:
    """Return each method's best rate among all that have been tried, and write them to `rates.json`.

    Args:
        out: the comparison's folder.
        methods: each must have a finished run, see `Study.plan_search`; `rates.json` also lists others that have.
        seed: the seed of the runs.
    """
    losses: dict[str, dict[float, float]] = {}
    for path in sorted((out / SEARCH).glob(f"*/*/seed-{seed}/{SUMMARY_NAME}")):
        run = RunFolder(path.parent)
        macro = figures(run.read(SUMMARY_NAME))["macro"]
        rate = fill_training(run.config()["training"])["learning_rate"]
        method = path.relative_to(out / SEARCH).parts[0]
        losses.setdefault(method, {})[rate] = macro if macro is not None and isfinite(macro) else inf
    found = {
        method: Found(min(tried, key=lambda rate: tried[rate]), dict(sorted(tried.items())))
        for method, tried in losses.items()
    }
    listed = {
        method: {
            f"{rate:g}": {"macro": loss if isfinite(loss) else None, "best": rate == each.best}
            for rate, loss in each.losses.items()
        }
        for method, each in found.items()
    }
    replace_file(out / RATES_NAME, json.dumps(listed, indent=2) + "\n")
    return {method: found[method] for method in methods}


def describe_rates(found: Mapping[str, Found]) -> Iterator[str]:
    """Yield a line on each method's rates."""
    for method, each in found.items():
        tried = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in each.losses.items())
        hint = "; the best is the last one tried, so try others beyond it" if each.at_end else ""
        yield f"{method}: learning rate {each.best:g} (macro loss by rate {tried}{hint})"
