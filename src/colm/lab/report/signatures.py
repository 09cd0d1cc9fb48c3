"""Signs of known failures in a run, each with its likely cause and what to do: one pure function a sign."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import fmean
from typing import Literal, NamedTuple

from colm.lab.report.measures import compared_steps, divide, mean_macro
from colm.lab.report.runs import Run

RISE = 0.03
"""A loss has risen if it ends this part above its lowest value; less is usual from one evaluation to the next."""
EPOCHS = 3.0
"""Passes over a small source that language models take without harm, in practice; more is where they learn by heart."""
OVERFLOW = 0.1
"""Part of the steps that may keep nothing but small sources."""
LAG = 0.005
"""A loss lags if it is this part above the control's; less is usual between two seeds."""
GAIN = 0.05
"""The kept rows' cosine is above random rows' if it closes this part of what those lack to 1."""
FEWEST = 5
"""Steps with a match that a verdict needs."""
UNLABELLED = 0.01
"""Part of the pool rows that may be without a labelled token."""
MEMORY = 0.05
"""Peaks of memory closer than this part are the same."""

State = Literal["problem", "fine", "unknown"]


class Verdict(NamedTuple):
    """What one check found, in plain words."""

    state: State
    title: str
    evidence: str
    cause: str = ""  # likely; of a problem only
    advice: str = ""  # of a problem only


def check_run(run: Run, others: Sequence[Run] = ()) -> list[Verdict]:
    """Return every check's verdict, problems first.

    Args:
        run: to check.
        others: runs to compare with; the control among them is found by its settings.
    """
    control = find_control([other for other in others if other is not run])
    verdicts = [
        check_finite_losses(run),
        check_small_sources(run),
        check_overflow(run),
        check_match(run),
        check_selection_time(run),
        check_nonfinite_features(run),
        check_unlabelled(run),
    ]
    if others and not is_control(run):
        verdicts += [check_lag(run, control), check_memory(run, control)]
    order = ("problem", "unknown", "fine")
    return sorted(verdicts, key=lambda verdict: order.index(verdict.state))


def is_control(run: Run) -> bool:
    """Return whether the run kept a part of each pool without looking at features."""
    return run.selection.get("features") == "none" and any(step.kept_count < step.pool_count for step in run.steps)


def find_control(runs: Sequence[Run]) -> Run | None:
    """Return the run to measure against: without features, with small sources kept if there is such a one."""
    controls = [run for run in runs if is_control(run)]
    ruled = [run for run in controls if run.selection.get("small_sources") != "none"]
    return next(iter(ruled or controls), None)


def check_finite_losses(run: Run) -> Verdict:
    """Check that every evaluation loss is a finite number."""
    broken = [
        f"{name} at step {each.step}"
        for each in run.evaluations
        for name, loss in each.losses.items()
        if not isfinite(loss)
    ]
    if not run.evaluations:
        return Verdict("unknown", "Losses", "The run has no evaluation. Set data.validation or data.validation_rows.")
    if not broken:
        return Verdict("fine", "Every evaluation loss is finite", f"{len(run.evaluations)} evaluations.")
    return Verdict(
        "problem",
        "An evaluation loss is not finite",
        f"First that of {broken[0]}.",
        "The training has diverged, or the evaluation overflows in half precision.",
        "Lower the learning rate, warm it up for longer, or clip gradients; use bf16 rather than fp16.",
    )


def check_small_sources(run: Run) -> Verdict:
    """Check that no small source's evaluation loss ends above its lowest value."""
    title = "Small sources get better"
    if not run.small:
        return Verdict("fine", "There is no small source", "So none can get worse.")
    if len(run.evaluations) < 2:
        return Verdict("unknown", title, "This needs two evaluations; set training.eval_strategy and eval_steps.")
    rising = []
    for name in sorted(run.small):
        losses = [loss for each in run.evaluations if isfinite(loss := each.losses.get(name, float("nan")))]
        if len(losses) >= 2 and losses[-1] > min(losses) * (1 + RISE):
            rising.append((name, min(losses), losses[-1]))
    if not rising:
        return Verdict("fine", title, f"No loss of {_count(len(run.small), 'small source')} ends above its lowest.")
    causes, advice = _explain_rise(run, [name for name, _, _ in rising])
    return Verdict(
        "problem",
        "A small source gets worse" if len(rising) == 1 else f"{len(rising)} small sources get worse",
        "Evaluation loss, lowest and last: "
        + "; ".join(f"{name} {lowest:.3f} and {last:.3f}" for name, lowest, last in rising)
        + ".",
        causes,
        advice,
    )


def _explain_rise(run: Run, names: Sequence[str]) -> tuple[str, str]:
    epochs = {name: run.kept.get(name, 0) / rows for name in names if (rows := run.rows.get(name))}
    often = {name: passes for name, passes in epochs.items() if run.summary and passes > EPOCHS}
    causes, advice = [], []
    if often:
        shown = ", ".join(f"{name} {passes:.1f}" for name, passes in often.items())
        causes.append(f"Too many passes over its rows ({shown}), which are learnt by heart.")
        advice.append("Train for fewer steps, add rows to it, or list small_sources without it.")
    if _overflow_share(run) > OVERFLOW:
        causes.append("Small sources fill the whole budget, so that the model drifts to them and forgets the rest.")
        advice.append("Raise selection.keep, or list fewer small_sources.")
    if not causes:
        causes.append("Its source label may be wrong: rows of another kind are trained under its name.")
        causes.append("Otherwise its validation rows are unlike its training rows, or the learning rate is too high.")
        advice.append("Read some of its rows with their labels (data.source_column), then lower the learning rate.")
    return " ".join(causes), " ".join(advice)


def check_overflow(run: Run) -> Verdict:
    """Check that small sources leave room for big ones."""
    share = _overflow_share(run)
    if share <= OVERFLOW:
        evidence = f"{share:.0%} of the steps kept rows of small sources only."
        return Verdict("fine", "Small sources leave room for big ones", evidence)
    return Verdict(
        "problem",
        "Small sources fill the budget",
        f"In {share:.0%} of the steps every kept row was of a small source, though the pool held more rows.",
        "The sources that count as small make up more of the data than selection.keep leaves room for.",
        "Raise selection.keep, or list the sources to keep whole in selection.small_sources.",
    )


def _overflow_share(run: Run) -> float:
    full = sum(0 < step.kept_count <= step.small_kept and step.kept_count < step.pool_count for step in run.steps)
    return full / len(run.steps)


def check_match(run: Run) -> Verdict:
    """Check that the kept rows' mean feature points where the pool's does, more than random rows' would."""
    title = "The kept rows match the pool better than random ones"
    features = run.selection.get("features")
    if features == "none":
        return Verdict("fine", "Rows are drawn at random", "selection.features is none, so there is no match to check.")
    held = compared_steps(run)
    if len(held) < FEWEST:
        return Verdict("unknown", title, f"{_count(len(held), 'step')} with a match; this needs {FEWEST}.")
    match = fmean(step.match or 0.0 for step in held)
    random = fmean(step.match_random or 0.0 for step in held)
    closed = divide(match - random, 1 - random) or 0.0
    evidence = f"Mean cosine with the pool {match:.3f}, of random rows {random:.3f}, over {len(held)} steps"
    evidence += f": that closes {closed:.0%} of what random rows lack to 1." if closed > 0 else "."
    if closed > GAIN:
        return Verdict("fine", title, evidence)
    cause = "The features do not tell rows apart: they are nearly orthogonal and of even size, so no subset stands out."
    if features == "spsa":
        cause = "The zeroth-order estimate is noise here: few probes say little about a row's gradient."
    return Verdict(
        "problem",
        "The kept rows match the pool no better than random ones",
        evidence,
        f"{cause} Adam's history or too few coordinates can hide the difference as well.",
        "Compare with selection.features=none, which is as good then and saves the selection pass; or try "
        "selection.preset=matched.",
    )


def check_selection_time(run: Run) -> Verdict:
    """Check that the selection takes less time than training on the rows that it leaves out would."""
    title = "The selection costs less than it saves"
    if run.selection.get("features") == "none":
        return Verdict("fine", "There is no selection pass", "selection.features is none.")
    timed = [step for step in run.steps if step.step_seconds]
    if len(timed) < 2:
        return Verdict("unknown", title, "The run did not write step_seconds.")
    timed = timed[1:]  # the first step warms up
    selection = sum(step.seconds for step in timed)
    whole = sum(step.step_seconds or 0.0 for step in timed)
    kept = sum(step.kept_count for step in timed)
    left_out = sum(step.pool_count for step in timed) - kept
    saved = (whole - selection) / kept * left_out if kept else 0.0
    evidence = (
        f"The selection takes {divide(selection, whole) or 0.0:.0%} of the time, {selection / len(timed):.3g} s a "
        f"step; training on the rows left out would take about {saved / len(timed):.3g} s."
    )
    if selection <= saved:
        return Verdict("fine", title, evidence)
    if left_out <= 0:
        cause, advice = (
            "Every row is kept, so there is nothing to select.",
            "Lower selection.keep, or set features: none.",
        )
    else:
        cause = "Micro-batches that are too small to keep the device busy, or an output head in small chunks."
        advice = (
            "Raise selection.pass_tokens (or the micro-batch size) and selection.head_chunk_tokens; with spsa use "
            "fewer probes. If it stays so, train on the whole pool."
        )
    return Verdict("problem", "The selection takes more than its share of the time", evidence, cause, advice)


def check_nonfinite_features(run: Run) -> Verdict:
    """Check that every row's features are finite."""
    broken = sum(step.nonfinite for step in run.steps)
    if not broken:
        return Verdict("fine", "Every row's features are finite", "No row was left out for infinite or undefined ones.")
    steps = sum(step.nonfinite > 0 for step in run.steps)
    return Verdict(
        "problem",
        "Some rows have features that are not finite",
        f"{_count(broken, 'row')} in {_count(steps, 'step')} of {len(run.steps)}; such a row is never a medoid.",
        "Overflow in half precision, or a training that diverges.",
        "Use bf16 or float32 rather than fp16, lower the learning rate, and look at very long or empty rows.",
    )


def check_unlabelled(run: Run) -> Verdict:
    """Check that few rows are without a labelled token."""
    dropped = sum(step.unlabelled for step in run.steps)
    seen = sum(step.pool_count for step in run.steps)
    share = divide(dropped, seen) or 0.0
    evidence = f"{_count(dropped, 'row')} of {seen:,} had no token to learn from ({share:.1%})."
    if share <= UNLABELLED:
        return Verdict("fine", "Rows have tokens to learn from", evidence)
    return Verdict(
        "problem",
        "Many rows have no token to learn from",
        evidence,
        "Prompts as long as data.max_length, so that the completion is cut off, or empty completions.",
        "Raise data.max_length, shorten the prompts, or check data.columns and data.format.",
    )


def check_lag(run: Run, control: Run | None) -> Verdict:
    """Check that the macro loss is not above the control's, at the last step that both were evaluated at."""
    title = "The loss does not lag the control's"
    if control is None:
        return Verdict("unknown", title, "None of the runs is a control; train one with selection.features=none.")
    mine, its = (
        {each.step: macro for each in one.evaluations if (macro := mean_macro(each.losses, one.trained)) is not None}
        for one in (run, control)
    )
    both = sorted(mine.keys() & its.keys() - {0})
    if not both:
        return Verdict("unknown", title, f"The run and {control.name} were not evaluated at the same step.")
    step = both[-1]
    evidence = f"Macro loss after {step} steps {mine[step]:.4f}, of {control.name} {its[step]:.4f}; one run each."
    if mine[step] <= its[step] * (1 + LAG):
        return Verdict("fine", title, evidence)
    return Verdict(
        "problem",
        "The loss lags the control's",
        evidence,
        "Adam's history is of few or of odd rows, too few coordinates stand for a source, or the kept rows are of one "
        "kind (see the match).",
        "Try selection.adam=false and a larger selection.coordinates, and repeat with other seeds (colm compare) "
        "before concluding; if it stays so, use the control, which costs nothing.",
    )


def check_memory(run: Run, control: Run | None) -> Verdict:
    """Check that the selection pass does not need more memory than training does, by the control's peak."""
    title = "The selection pass fits in training's memory"
    mine = run.summary if run.finished else None
    its = control.summary if control and control.finished else None
    if not mine or not its or not mine.peak_memory or not its.peak_memory or mine.memory_kind != its.memory_kind:
        return Verdict("unknown", title, "This needs peaks of memory of one kind, of this run and of a control.")
    evidence = f"Peak {mine.peak_memory / 2**20:,.0f} MiB, of {control.name if control else ''} "
    evidence += f"{its.peak_memory / 2**20:,.0f} MiB."
    if mine.peak_memory <= its.peak_memory * (1 + MEMORY):
        return Verdict("fine", title, evidence)
    return Verdict(
        "problem",
        "The run needs more memory than the control's training",
        evidence,
        "The selection pass holds more than training does: long rows in one micro-batch, or large logits.",
        "Lower selection.pass_tokens and selection.head_chunk_tokens.",
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
