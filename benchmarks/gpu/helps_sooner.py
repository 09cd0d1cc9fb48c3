"""How soon each method has the final loss of the plain Trainer, which is what a user has today."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from cells import table
from helps_cells import PLAIN, Runs, curve, final, macro, show

from colm.lab.intervals import estimate_mean
from colm.lab.report.loss_curves import find_first_reach

NOTE = (
    "`plain` is `transformers.Trainer` on as many random rows as a quarter of a pool, with `DataCollatorForSeq2Seq`, "
    "its own order and its own loss, the mean over tokens. Time is until the macro loss, linear between evaluations, "
    "is that of `plain` at its end, relative to the seconds of its whole run on the same card; only runs that reach it "
    "count. Neither side's learning rate was tuned. Micro is the mean over sources weighted by their rows. A method "
    "with more rows per step learns from more of them: compare its time."
)


def write_sooner(runs: Runs, base: Mapping[str, float] | None, sizes: Mapping[str, int]) -> str:
    """Return the table in Markdown.

    Args:
        runs: all runs.
        base: each source's loss before training.
        sizes: training rows of each source.
    """
    plain = runs.get(PLAIN, {})
    if not plain:
        return "No run of the plain Trainer has finished, so there is no loss to reach."
    rows = [
        ["method", "rows per step", "seeds", "time to its macro loss", "step / its step", "macro minus", "micro minus"],
        ["---", "---:", "---:", "---", "---", "---", "---"],
    ]
    for name, held in runs.items():
        pairs = [
            (line, plain[seed]) for seed, line in held.items() if seed in plain and line["card"] == plain[seed]["card"]
        ]
        if name == PLAIN or not pairs:
            continue
        times = [_share(ours, theirs, base) for ours, theirs in pairs]
        known = [time for time in times if time is not None]
        reached = show(estimate_mean(known), 2)
        if len(known) < len(times):
            reached += f" ({len(known)} of {len(times)} seeds reach it)"
        steps = [_step(ours) / _step(theirs) for ours, theirs in pairs]
        macros = [macro(final(ours)) - macro(final(theirs)) for ours, theirs in pairs]
        micros = [_micro(final(ours), sizes) - _micro(final(theirs), sizes) for ours, theirs in pairs] if sizes else []
        rows.append(
            [
                name,
                str(pairs[0][0]["kept"]),
                str(len(pairs)),
                reached,
                show(estimate_mean(steps), 2),
                show(estimate_mean(macros), 4, "+"),
                show(estimate_mean(micros), 4, "+"),
            ]
        )
    seconds = fmean(line["seconds"] for line in plain.values())
    return f"{table(rows)}\n\n{NOTE} Its runs took {seconds:.1f} s on average."


def _share(ours: Mapping[str, Any], theirs: Mapping[str, Any], base: Mapping[str, float] | None) -> float | None:
    """Return the seconds to the other run's final macro loss, of all its seconds; None if it is never reached."""
    reached = find_first_reach(*curve(ours, base), macro(final(theirs)))
    return None if reached is None else reached / float(theirs["seconds"])


def _step(line: Mapping[str, Any]) -> float:
    return float(line["seconds"]) / int(line["steps"])


def _micro(losses: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    return sum(sizes[name] * loss for name, loss in losses.items()) / sum(sizes[name] for name in losses)
