"""`colm probe`: what batch size, order and selection are worth on this machine, before a run."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from colm.errors import ConfigError
from colm.lab.cli.arguments import Commands, add_config, add_json
from colm.lab.cli.console import make_console, make_progress

if TYPE_CHECKING:
    from rich.table import Table

    from colm.lab.probe.measure import Probe
    from colm.lab.probe.worth import Estimate


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_config(
        commands, "probe", "train a little and say which batch size, order and selection pay on this machine"
    )
    add = command.add_argument
    add(
        "--stages",
        type=int,
        nargs="+",
        default=[0, 20],
        metavar="STEP",
        help="optimizer steps before each look at the gradients (default: 0 20)",
    )
    add("--pools", type=int, default=8, metavar="N", help="pools to look at in each stage (default: 8)")
    add(
        "--batches",
        type=int,
        nargs="+",
        metavar="ROWS",
        help="rows a step to time (default: an eighth to twice the configured ones)",
    )
    add_json(command, "the measurements and the advice")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Measure, and print the tables and one sentence.

    Raises:
        ConfigError: a value out of range, a stream, or too few rows.
    """
    stages, batches = _check(args)
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from colm.lab.probe.measure import Wanted, run_probe
    from colm.lab.probe.workbench import Workbench
    from colm.lab.run.settings import load_settings

    settings = load_settings(args.config, args.overrides)
    console = make_console()
    with TemporaryDirectory() as scratch:
        bench = Workbench(settings._replace(output_dir=Path(scratch)))
        sizes = batches or sorted({max(1, bench.kept * share // 8) for share in (1, 2, 4, 8, 16)})
        sizes = sorted({*sizes, bench.kept})
        with make_progress(console, "Probing") as told:
            found = run_probe(bench, Wanted(stages, args.pools, tuple(sizes)), told)
    if args.json:
        return found._asdict() | {"rules": [rule_values(found, rule.name) for rule in found.rules]}
    for table in (batch_table(found, bench.kept), rule_table(found)):
        console.print(table)
    console.print(found.advice.sentence, markup=False, highlight=False)
    return None


def _check(args: argparse.Namespace) -> tuple[tuple[int, ...], list[int]]:
    stages = tuple(sorted(set(args.stages)))
    if stages[0] < 0:
        raise ConfigError(f"--stages {stages[0]}: a stage must be a whole number of at least 0.")
    if args.pools < 4:
        raise ConfigError(f"--pools {args.pools} must be at least 4: the error of fewer does not average out.")
    batches = sorted(set(args.batches or ()))
    if batches and batches[0] < 1:
        raise ConfigError(f"--batches {batches[0]}: a step has at least 1 row.")
    return stages, batches


def rule_values(found: Probe, name: str) -> dict[str, Any]:
    """Return what is known of a rule."""
    rule = next(each for each in found.rules if each.name == name)
    gain = rule.gain(found.seconds)
    return {
        "name": name,
        "kept": rule.kept,
        "pool": rule.pool,
        "worth": rule.worth,
        "worth_in_loss": rule.in_loss(),
        "seconds": rule.seconds,
        "gain": gain,
    }


def batch_table(found: Probe, kept: int) -> Table:
    """Return the table of batch sizes."""
    from rich.table import Table

    from colm.lab.probe.advice import batch_times

    last = list(found.noise.values())[-1]
    title = f"Rows of a step, {kept} as configured"
    if last is not None:
        error = "" if last.error is None else f" ± {2 * last.error:.0f}"
        title += f"; noise scale {last.rows:.0f}{error} rows"
    times = {} if last is None else batch_times(found.seconds, last.rows)
    table = Table(title=title)
    for heading in ("rows", "in micro-batches of", "seconds a step", "rows a second", "time to the same loss"):
        table.add_column(heading, justify="right")
    for rows, (seconds, micro_batch) in found.timings.items():
        relative = f"{times[rows] / times.get(kept, 1.0):.2f}" if times else "-"
        table.add_row(str(rows), str(micro_batch), f"{seconds:.3f}", f"{rows / seconds:.1f}", relative)
    return table


def rule_table(found: Probe) -> Table:
    """Return the table of rules."""
    from rich.table import Table

    def show(estimate: Estimate, digits: int) -> str:
        error = "" if estimate.error is None else f" ± {2 * estimate.error:.{digits}f}"
        return f"{estimate.value:.{digits}f}{error}"

    table = Table(title="What rules are worth")
    for heading in ("rule", "rows", "random rows of the same noise", "of the same loss", "seconds", "gain in time"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for rule in found.rules:
        table.add_row(
            rule.name,
            f"{rule.kept} of {rule.pool}",
            show(rule.worth, 0),
            show(rule.in_loss(), 0),
            f"{rule.seconds:.3f}",
            show(rule.gain(found.seconds), 2),
        )
    return table
