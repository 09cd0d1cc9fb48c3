"""Find each method's learning rate: that of the lowest final macro loss on a seed that the comparison does not use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from math import inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple

from colm.errors import ConfigError
from colm.lab.data.fingerprint import describe_difference
from colm.lab.run.arguments import fill_training
from colm.lab.run.changes import refused_changes
from colm.lab.run.folder import RunFolder
from colm.lab.run.settings import load_run_settings
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


def check_rates(rates: Sequence[float]) -> None:
    """Check the learning rates to try, before anything is read or counted.

    Raises:
        ConfigError: one is not a finite number above 0.
    """
    for rate in rates:
        if not 0 < rate < inf:
            raise ConfigError(f"--rates {rate:g}: a learning rate must be a finite number above 0.")


def free_seed(seeds: Sequence[int], given: int | None) -> int:
    """Return the seed on which rates are tried: the given one, or the first that is not among the counted seeds.

    Raises:
        ConfigError: the given seed is one of them, or negative.

    >>> free_seed([1, 2, 0], None), free_seed([1, 2], 7)
    (3, 7)
    """
    if given is not None and given in seeds:
        raise ConfigError(
            f"--rates-seed {given} is among --seeds, so rates would be chosen on a seed that counts; use another."
        )
    if given is not None and given < 0:
        raise ConfigError(f"--rates-seed {given}: a seed must be a whole number of at least 0.")
    return next(seed for seed in count() if seed not in seeds) if given is None else given


def find_rates(out: Path, search: Mapping[Path, Mapping[str, Any]]) -> dict[str, Found]:
    """Return each method's best rate, and write all that were tried to `rates.json`.

    Earlier runs with other rates count, if their data is the same and nothing else in their settings differs.

    Args:
        out: the comparison's folder.
        search: folder -> settings of finished runs, see `Study.plan_search`.

    Raises:
        ConfigError: a method has no rate with a finite loss.
    """
    losses: dict[str, dict[float, float]] = {}
    for planned, settings in search.items():
        method = planned.relative_to(out / SEARCH).parts[0]
        for path in sorted(planned.parents[1].glob(f"*/{planned.name}/{SUMMARY_NAME}")):
            run = RunFolder(path.parent)
            if path.parent != planned and not _differs_in_rate_alone(run, RunFolder(planned), settings):
                continue
            macro = figures(run.read(SUMMARY_NAME))["macro"]
            rate = fill_training(run.config()["training"])["learning_rate"]
            losses.setdefault(method, {})[rate] = macro if macro is not None and isfinite(macro) else inf
    for method, tried in losses.items():
        if all(loss == inf for loss in tried.values()):
            raise ConfigError(
                f"The method {method!r} has no finite macro loss with the learning rates "
                f"{', '.join(f'{rate:g}' for rate in tried)}; give --rates lower ones."
            )
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
    return found


def _differs_in_rate_alone(run: RunFolder, planned: RunFolder, settings: Mapping[str, Any]) -> bool:
    if not run.config() or describe_difference(run.fingerprint(), planned.fingerprint()):
        return False
    changes = refused_changes(load_run_settings(run.path).values, settings, same_length=True)
    return {key for key, _, _ in changes} <= {"training.learning_rate"}


def describe_rates(found: Mapping[str, Found]) -> Iterator[str]:
    """Yield a line on each method's rates."""
    for method, each in found.items():
        tried = ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in each.losses.items())
        end = "smallest" if each.best == min(each.losses) else "largest"
        hint = f"; the best is the {end} one tried, so try others beyond it" if each.at_end else ""
        yield f"{method}: learning rate {each.best:g} (macro loss by rate {tried}{hint})"
