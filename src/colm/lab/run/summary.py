"""The figures of a finished run, as in `summary.json`, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from colm.lab.run.tables import add_sources
from colm.step.sources import find_small_sources
from colm.trainers.evaluation import SourceTrainer


def best_step(trainer: SourceTrainer) -> int | None:
    """Return the step whose weights the Trainer loaded at the end; None for the last step."""
    if not trainer.args.load_best_model_at_end or trainer.state.best_model_checkpoint is None:
        return None
    step: int = trainer.state.best_global_step
    return step


def summarise(
    trainer: SourceTrainer,
    evaluations: Sequence[Mapping[str, Any]],
    best: int | None = None,
    *,
    dropped: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the figures of a finished run; losses are None without validation data.

    Args:
        trainer: the trainer after training.
        evaluations: the recorder's lines.
        best: the step whose weights are saved, and whose losses are reported; None for the last.
        dropped: source -> rows without a labeled token, which were not trained on; for a stream, among its first rows.
    """
    dropped = dropped or {}
    rule = trainer.selection.small_sources
    listed = "auto" if rule == "none" else rule  # small sources are defined by the data, not by the method
    lines = [line for line in evaluations if best is None or line["step"] <= best]
    noise = trainer.selector.noise_scale
    before, after = ({}, {}) if not lines else (lines[0]["losses"], lines[-1]["losses"])
    return {
        "steps": trainer.state.global_step,
        **({} if best is None else {"best_step": best}),
        "seconds": round(trainer.figures.seconds, 3),
        "selection_seconds": round(trainer.figures.selection_seconds, 3),
        "eval_loss_before": _mean_over_rows(before, trainer.validation),
        "eval_loss_after": _mean_over_rows(after, trainer.validation),
        **({} if noise is None else {"noise": noise._asdict()}),
        "small_sources": sorted(find_small_sources(trainer.source_sizes, listed)),
        "sources": {
            name: {
                "rows": trainer.source_sizes.get(name, 0),
                "pooled": trainer.figures.pooled.get(name, 0),
                "kept": trainer.figures.kept.get(name, 0),
                **({"dropped": dropped[name]} if dropped.get(name) else {}),
                "eval_loss_before": before.get(name),
                "eval_loss_after": after.get(name),
            }
            for name in sorted({*trainer.source_sizes, *trainer.validation, *dropped})
        },
    }


def summary_table(summary: Mapping[str, Any]) -> Table:
    """Return the figures as a table with a row per source, and a column of dropped rows if there are any."""
    counts = ["rows", "pooled", "kept"]
    if any(source.get("dropped") for source in summary["sources"].values()):
        counts.insert(1, "dropped")
    table = Table(title="Summary by source")
    table.add_column("source", overflow="fold")
    for name in (*counts, "loss before", "loss after"):
        table.add_column(name, justify="right")

    def loss(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    rows = [
        (
            name,
            *(f"{source.get(key, 0):,}" for key in counts),
            loss(source["eval_loss_before"]),
            loss(source["eval_loss_after"]),
        )
        for name, source in sorted(summary["sources"].items(), key=lambda item: -item[1]["rows"])
    ]
    add_sources(table, rows, "summary.json and colm report")
    table.add_section()
    totals = [f"{sum(source.get(key, 0) for source in summary['sources'].values()):,}" for key in counts]
    table.add_row("all", *totals, loss(summary["eval_loss_before"]), loss(summary["eval_loss_after"]))
    return table


def _mean_over_rows(losses: Mapping[str, float], sizes: Mapping[str, int]) -> float | None:
    rows = sum(sizes[name] for name in losses)
    return sum(loss * sizes[name] for name, loss in losses.items()) / rows if rows else None
