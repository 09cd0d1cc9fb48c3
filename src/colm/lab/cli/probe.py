"""`colm probe`: what batch size, order and selection are worth on this machine, before a run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from colm.errors import ConfigError
from colm.lab.cli.arguments import Commands, add_config, add_json, require_one_process
from colm.lab.cli.console import make_console, make_progress

if TYPE_CHECKING:
    from rich.table import Table

    from colm.lab.probe.cuts import Cut
    from colm.lab.probe.measure import Probe
    from colm.lab.probe.worth import Estimate

PAGE_NAME = "probe.html"


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_config(
        commands, "probe", "train a little and say which batch size, order and selection pay off on this machine"
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
        help="numbers of rows per step to time (default: an eighth to twice the configured number)",
    )
    add(
        "--choices",
        nargs="+",
        default=[],
        metavar="K/N",
        help="keep K rows from pools of N rows, such as 8/32 32/64 (default: the configured number, from the "
        "configured pool, half of it, and twice as much)",
    )
    add("--out", metavar="FILE", help="output file (default: probe.html in the output folder)")
    add_json(command, "the measurements and the advice")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, write the page, print the tables and one sentence, and return what was found.

    Raises:
        ConfigError: a value out of range, a stream, too few rows, or a page that cannot be written.
    """
    stages, batches, cuts = _check(args)
    from colm.lab.run.settings import load_settings

    settings = load_settings(args.config, args.overrides)
    from colm.lab.probe.advice import LOSS_EXPONENT
    from colm.lab.probe.cuts import WINDOW, check_pools
    from colm.lab.probe.measure import Wanted, run_probe
    from colm.lab.probe.workbench import Workbench
    from colm.lab.report.page import check_page
    from colm.lab.report.probe_page import write_probe_page
    from colm.lab.run.folder import RunFolder

    filled = settings.arguments
    check_pools(cuts, args.pools * filled["per_device_train_batch_size"] * filled["gradient_accumulation_steps"])
    page = Path(args.out) if args.out else settings.output_dir / PAGE_NAME
    if not args.out:
        RunFolder(settings.output_dir).prepare()
    check_page(page)
    console = make_console()
    with TemporaryDirectory() as scratch:
        bench = Workbench(settings._replace(output_dir=Path(scratch)))
        sizes = batches or [max(1, bench.kept * share // 8) for share in (1, 2, 4, 8, 16)]
        with make_progress(console, "Probing") as told:
            found = run_probe(bench, Wanted(stages, args.pools, tuple(sizes), cuts), told)
    values = list_probe(found)
    noise = values["noise_scale"]
    facts = [
        ("Model", settings.model),
        ("Device", str(bench.device)),
        ("Noise scale", "not clear" if noise is None else f"{noise:.0f} rows after {stages[-1]} steps"),
        ("Looked at", f"{args.pools} pools of {bench.pool} rows after {', '.join(map(str, stages))} steps"),
    ]
    name = Path(args.config).name
    write_probe_page(values, page, name=name, facts=facts, window=WINDOW, exponent=LOSS_EXPONENT)
    if not args.json:
        for table in (batch_table(values), rule_table(values)):
            console.print(table)
        console.print(values["advice"].sentence, markup=False, highlight=False)
        console.print(f"Written: {page}", markup=False, highlight=False)
    return values | {"page": page}


def _check(args: argparse.Namespace) -> tuple[tuple[int, ...], list[int], tuple[Cut, ...]]:
    from colm.lab.probe.cuts import parse_cut

    require_one_process("colm probe", "start it without a launcher")
    stages = tuple(sorted(set(args.stages)))
    if stages[0] < 0:
        raise ConfigError(f"--stages {stages[0]}: a stage must be a whole number of at least 0.")
    if args.pools < 4:
        raise ConfigError(f"--pools {args.pools} must be at least 4: the error of fewer does not average out.")
    batches = sorted(set(args.batches or ()))
    if batches and batches[0] < 1:
        raise ConfigError(f"--batches {batches[0]}: a step has at least 1 row.")
    return stages, batches, tuple(dict.fromkeys(parse_cut(text) for text in args.choices))


def list_probe(found: Probe) -> dict[str, Any]:
    """Return what was found, as plain values and estimates."""
    from colm.lab.probe.advice import batch_times, best_random

    seconds, scale = found.seconds, found.scale
    times = {} if scale is None else batch_times(seconds, scale.value)
    return {
        "kept": found.kept,
        "noise_scale": None if scale is None else scale.value,
        "noise_by_stage": found.noise,
        "best_random_rows": None if scale is None else best_random(seconds, scale.value)[0],
        "batches": [
            {"rows": rows, **timing._asdict(), "relative": times[rows] / times[found.kept] if times else None}
            for rows, timing in found.timings.items()
        ],
        "rules": [
            {
                **{key: getattr(rule, key) for key in ("name", "kept", "pool", "worth", "seconds")},
                "worth_in_loss": rule.in_loss(),
                "gain": rule.gain(seconds, scale),
                "worth_by_stage": rule.by_stage,
            }
            for rule in found.rules
        ],
        "advice": found.advice,
    }


def batch_table(values: Mapping[str, Any]) -> Table:
    """Return the table of batch sizes."""
    from rich.table import Table

    noise = values["noise_scale"]
    title = f"Rows of a step, {values['kept']} as configured; noise scale "
    table = Table(title=title + ("not clear" if noise is None else f"{noise:.0f} rows"))
    for heading in ("rows", "in micro-batches of", "seconds a step", "rows a second", "time to the same loss"):
        table.add_column(heading, justify="right")
    for row in values["batches"]:
        relative = "-" if row["relative"] is None else f"{row['relative']:.2f}"
        per_second = f"{row['rows'] / row['seconds']:.1f}"
        table.add_row(str(row["rows"]), str(row["micro_batch"]), f"{row['seconds']:.3f}", per_second, relative)
    return table


def rule_table(values: Mapping[str, Any]) -> Table:
    """Return the table of rules."""
    from rich.table import Table

    def show(estimate: Estimate, digits: int) -> str:
        half = "" if estimate.half is None else f" ± {estimate.half:.{digits}f}"
        return f"{estimate.value:.{digits}f}{half}"

    table = Table(title="What orders and selections are worth, in random rows")
    for heading in ("rule", "rows", "by noise", "by loss", "seconds", "gain in time"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    for rule in values["rules"]:
        table.add_row(
            rule["name"],
            f"{rule['kept']} of {rule['pool']}" if rule["pool"] > rule["kept"] else str(rule["kept"]),
            show(rule["worth"], 0),
            show(rule["worth_in_loss"], 0),
            f"{rule['seconds']:.3f}",
            show(rule["gain"], 2),
        )
    return table
