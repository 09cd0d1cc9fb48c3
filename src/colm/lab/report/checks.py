"""Signs of known failures in a run, each with its likely cause and remedy: one pure function per sign."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import fmean
from typing import Literal, NamedTuple

from colm.lab.report.measures import compared_steps, divide, mean_macro
from colm.lab.report.runs import Run

RISE = 0.03
"""A loss has risen if it ends this fraction above its lowest value; smaller changes between evaluations are normal."""
EPOCHS = 3.0
"""Passes over a small source that are harmless in practice; with more passes, language models memorize it."""
OVERFLOW = 0.1
"""Maximum fraction of steps that keep only small sources."""
LAG = 0.005
"""A loss lags if it is this fraction above the control's; smaller differences between seeds are normal."""
GAIN = 0.05
"""The kept rows match better if their cosine closes this fraction of the gap between random rows' cosine and 1."""
FEWEST = 5
"""Minimum steps with a match for a verdict."""
UNLABELLED = 0.01
"""Maximum fraction of pool rows without a labeled token."""
MEMORY = 0.05
"""Memory peaks within this fraction count as equal."""

DECIDES = "colm compare CONFIG.yaml --methods control colm --seeds 0 1 2"
"""The command that decides what single runs cannot."""

STATES = ("problem", "note", "unknown", "fine")
"""In the order of a page; a note is a sign that one seed cannot confirm."""
State = Literal["problem", "note", "unknown", "fine"]


class Verdict(NamedTuple):
    """The result of one check, in plain words."""

    state: State
    title: str
    evidence: str
    cause: str = ""  # likely cause; only for problems and notes
    advice: str = ""  # only for problems and notes


def check_run(run: Run, others: Sequence[Run] = ()) -> list[Verdict]:
    """Return every check's verdict, problems first.

    Args:
        run: the run to check.
        others: runs to compare with; the control is identified by its settings.
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
    return sorted(verdicts, key=lambda verdict: STATES.index(verdict.state))


def is_control(run: Run) -> bool:
    """Return whether the run kept part of each pool without using features."""
    return run.selection.get("features") == "none" and any(step.kept_count < step.pool_count for step in run.steps)


def find_control(runs: Sequence[Run]) -> Run | None:
    """Return the control run: without features, preferably with small sources kept."""
    controls = filter(is_control, runs)
    return min(controls, key=lambda run: run.selection.get("small_sources") == "none", default=None)


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
        f"The first one: {broken[0]}.",
        "Training has diverged, or the evaluation overflows in half precision.",
        "Lower the learning rate, warm it up for longer, or clip gradients; use bf16 rather than fp16.",
    )


def check_small_sources(run: Run) -> Verdict:
    """Check that no small source's evaluation loss ends above its lowest value."""
    title = "Small sources improve"
    if not run.small:
        return Verdict("fine", "There is no small source", "There is nothing to check.")
    if len(run.evaluations) < 2:
        return Verdict("unknown", title, "This check needs two evaluations; set training.eval_strategy and eval_steps.")
    rising = []
    for name in sorted(run.small):
        losses = [loss for each in run.evaluations if isfinite(loss := each.losses.get(name, float("nan")))]
        if len(losses) >= 2 and losses[-1] > min(losses) * (1 + RISE):
            rising.append((name, min(losses), losses[-1]))
    if not rising:
        return Verdict(
            "fine", title, f"No loss of {_count(len(run.small), 'small source')} ends above its lowest value."
        )
    causes, advice = _explain_rise(run, [name for name, _, _ in rising])
    return Verdict(
        "problem",
        "A small source gets worse" if len(rising) == 1 else f"{len(rising)} small sources get worse",
        "Lowest and final evaluation loss: "
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
        causes.append(f"Too many passes over its rows ({shown}), which the model memorizes.")
        advice.append("Train for fewer steps, add rows to it, or remove it from small_sources.")
    if _overflow_share(run) > OVERFLOW:
        causes.append("Small sources fill the whole budget, so the model drifts to them and forgets the rest.")
        advice.append("Raise selection.keep, or list fewer small_sources.")
    if not causes:
        causes.append("Its source label may be wrong: rows of another kind are trained under its name.")
        causes.append("Otherwise its validation rows differ from its training rows, or the learning rate is too high.")
        advice.append("Read some of its rows with their labels (data.source_column), then lower the learning rate.")
    return " ".join(causes), " ".join(advice)


def check_overflow(run: Run) -> Verdict:
    """Check that small sources leave room for big ones."""
    share = _overflow_share(run)
    if share <= OVERFLOW:
        evidence = f"{share:.0%} of the steps kept only rows of small sources."
        return Verdict("fine", "Small sources leave room for big ones", evidence)
    return Verdict(
        "problem",
        "Small sources fill the budget",
        f"In {share:.0%} of the steps, every kept row was from a small source, although the pool had more rows.",
        "The small sources' share of the data exceeds selection.keep.",
        "Raise selection.keep, or list the sources to keep whole in selection.small_sources.",
    )


def _overflow_share(run: Run) -> float:
    full = sum(0 < step.kept_count <= step.small_kept and step.kept_count < step.pool_count for step in run.steps)
    return full / len(run.steps)


def check_match(run: Run) -> Verdict:
    """Check that the kept rows' mean feature aligns with the pool's, more closely than random rows' would."""
    title = "The kept rows match the pool better than random ones"
    features = run.selection.get("features")
    if features == "none":
        return Verdict("fine", "Rows are drawn at random", "selection.features is none, so there is no match to check.")
    held = compared_steps(run)
    if len(held) < FEWEST:
        return Verdict("unknown", title, f"{_count(len(held), 'step')} with a match; this check needs {FEWEST}.")
    match = fmean(step.match or 0.0 for step in held)
    random = fmean(step.match_random or 0.0 for step in held)
    closed = divide(match - random, 1 - random) or 0.0
    evidence = f"Mean cosine with the pool {match:.3f}, random rows {random:.3f}, over {len(held)} steps"
    evidence += f": this closes {closed:.0%} of the gap from random rows to 1." if closed > 0 else "."
    if closed > GAIN:
        return Verdict("fine", title, evidence)
    cause = (
        "The zeroth-order estimate is mostly noise: few probes reveal little about a row's gradient."
        if features == "spsa"
        else "The features do not distinguish rows: they are nearly orthogonal and of similar norm, so no subset "
        "stands out."
    )
    return Verdict(
        "problem",
        "The kept rows match the pool no better than random ones",
        evidence,
        f"{cause} Adam's history or too few coordinates can also hide the difference.",
        "Compare with selection.features=none, which is then as good and saves the selection pass; or try "
        "selection.preset=matched.",
    )


def check_selection_time(run: Run) -> Verdict:
    """Check that the selection takes less time than training on the rows that it leaves out."""
    title = "Selection costs less than it saves"
    if run.selection.get("features") == "none":
        return Verdict("fine", "There is no selection pass", "selection.features is none.")
    timed = [step for step in run.steps if step.step_seconds]
    if len(timed) < 2:
        return Verdict("unknown", title, "The run did not record step_seconds.")
    timed = timed[1:]  # the first step is a warm-up
    selection = sum(step.seconds for step in timed)
    whole = sum(step.step_seconds or 0.0 for step in timed)
    kept = sum(step.kept_count for step in timed)
    left_out = sum(step.pool_count for step in timed) - kept
    saved = (whole - selection) / kept * left_out if kept else 0.0
    evidence = (
        f"Selection takes {divide(selection, whole) or 0.0:.0%} of the time, {selection / len(timed):.3g} s per "
        f"step; training on the rows left out would take about {saved / len(timed):.3g} s."
    )
    if selection <= saved:
        return Verdict("fine", title, evidence)
    if left_out <= 0:
        cause = "Every row is kept, so there is nothing to select."
        advice = "Lower selection.keep, or set features: none."
    else:
        cause = "Micro-batches too small to keep the device busy, or small chunks of the output head."
        advice = (
            "Raise selection.pass_tokens (or the micro-batch size) and selection.head_chunk_tokens; with spsa, use "
            "fewer probes. If that does not help, train on the whole pool."
        )
    return Verdict("problem", "Selection costs more than it saves", evidence, cause, advice)


def check_nonfinite_features(run: Run) -> Verdict:
    """Check that every row's features are finite."""
    broken = sum(step.nonfinite for step in run.steps)
    if not broken:
        return Verdict("fine", "Every row's features are finite", "No row was left out for non-finite features.")
    steps = sum(step.nonfinite > 0 for step in run.steps)
    return Verdict(
        "problem",
        "Some rows have non-finite features",
        f"{_count(broken, 'row')} in {_count(steps, 'step')} of {len(run.steps)}; such rows are never medoids.",
        "Overflow in half precision, or diverging training.",
        "Use bf16 or float32 rather than fp16, lower the learning rate, and check very long or empty rows.",
    )


def check_unlabelled(run: Run) -> Verdict:
    """Check that few rows lack a labeled token."""
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
        "Prompts as long as data.max_length, so the completion is truncated, or empty completions.",
        "Raise data.max_length, shorten the prompts, or check data.columns and data.format.",
    )


def check_lag(run: Run, control: Run | None) -> Verdict:
    """Check that the macro loss is not above the control's, at the last step where both were evaluated."""
    title = "The loss does not lag behind the control's"
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
    evidence = f"Macro loss after {step} steps: {mine[step]:.4f}; {control.name}: {its[step]:.4f}; one run each."
    if mine[step] <= its[step] * (1 + LAG):
        return Verdict("fine", title, evidence)
    return Verdict(
        "note",
        "The loss ends above the control's; one seed cannot decide",
        evidence,
        "Chance; or Adam's history covers few or atypical rows, a source has too few coordinates, or all kept rows "
        "are of one kind (see the match).",
        f"Repeat with other seeds before concluding: {DECIDES}. If the lag remains, try selection.adam=false and a "
        "larger selection.coordinates, or use the control, which costs nothing.",
    )


def check_memory(run: Run, control: Run | None) -> Verdict:
    """Check that the selection pass does not need more memory than training does, by the control's peak."""
    title = "The selection pass fits in the memory of training"
    mine = run.summary if run.finished else None
    its = control.summary if control and control.finished else None
    if not mine or not its or not mine.peak_memory or not its.peak_memory or mine.memory_kind != its.memory_kind:
        return Verdict("unknown", title, "This check needs memory peaks of the same kind from this run and a control.")
    evidence = f"Peak {mine.peak_memory / 2**20:,.0f} MiB; {control.name if control else ''}: "
    evidence += f"{its.peak_memory / 2**20:,.0f} MiB."
    if mine.peak_memory <= its.peak_memory * (1 + MEMORY):
        return Verdict("fine", title, evidence)
    return Verdict(
        "problem",
        "The run needs more memory than the control",
        evidence,
        "The selection pass uses more memory than training: long rows in one micro-batch, or large logits.",
        "Lower selection.pass_tokens and selection.head_chunk_tokens.",
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
