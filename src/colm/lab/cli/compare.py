"""`colm compare`: several methods and seeds on the same data and order, for equal steps or equal time."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.table import Table

from colm.errors import ConfigError
from colm.lab.cli.arguments import Commands, add_config, add_json
from colm.lab.cli.console import make_console, say
from colm.lab.cli.documents import list_comparison

if TYPE_CHECKING:
    from colm.lab.study.forks import ForkServer

DEFAULT_METHODS = ("random", "control", "random-n", "colm")


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_config(commands, "compare", "train with several methods and seeds, and compare the results")
    add = command.add_argument
    add(
        "--methods",
        nargs="+",
        default=DEFAULT_METHODS,
        metavar="METHOD",
        help="methods, such as: random control colm colm+keep=0.25",
    )
    add("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="seeds of each method (default: 0 1 2)")
    add(
        "--equal",
        choices=("steps", "time"),
        default="steps",
        help="steps: training.max_steps for every method (default); time: as many steps as cost what random "
        "costs, in counted operations of the forward and backward passes",
    )
    add(
        "--rates",
        nargs="+",
        type=float,
        default=[],
        metavar="RATE",
        help="learning rates to try for each method, on a seed that is not in --seeds",
    )
    add("--rates-seed", type=int, metavar="SEED", help="seed for --rates (default: the first one not in --seeds)")
    add(
        "--batches",
        nargs="+",
        type=int,
        default=[],
        metavar="ROWS",
        help="also compare random batches of this many rows per step on each process, one that grows, and one that "
        "draws small sources more often",
    )
    add(
        "--launcher",
        default="",
        help="command that starts a run's processes: 'torchrun --nproc_per_node 4' (default: one process)",
    )
    add(
        "--eval-data",
        nargs="+",
        default=[],
        metavar="FILE",
        help="questions that every run answers, as colm eval --data",
    )
    add("--eval-options", default="", help="options for colm eval: --eval-options='--limit 200'")
    add_json(command, "results by method and seed, and what they show")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Run what is missing from the comparison, then write `compare.json` and print its table and what it shows."""
    from colm.lab.study.child import read_launcher
    from colm.lab.study.forks import ForkServer

    launcher = read_launcher(args.launcher)
    if args.eval_options and not args.eval_data:
        raise ConfigError(
            f"--eval-options {args.eval_options!r} has no effect without --eval-data; give both, or neither."
        )
    if launcher or not ForkServer.possible:
        return _compare(args, launcher, None)
    with ForkServer() as server:  # which imports while the settings are read and checked
        return _compare(args, launcher, server)


def _compare(args: argparse.Namespace, launcher: Sequence[str], server: ForkServer | None) -> dict[str, Any] | None:
    from colm.lab.run.folder import RunFolder
    from colm.lab.run.settings import load_settings
    from colm.step.record import COMPARE_NAME

    data, options = args.eval_data, args.eval_options
    settings = load_settings(args.config, args.overrides)
    out = settings.output_dir
    # After the settings have been read: the Trainer and the rest take seconds to import.
    from colm.lab.report.comparison import read_comparison
    from colm.lab.report.conclusion import conclude
    from colm.lab.study.finished import is_answered, read_asked, require_same
    from colm.lab.study.methods import batch_methods
    from colm.lab.study.planning import Study
    from colm.lab.study.rates import check_rates, describe_rates, find_rates, free_seed
    from colm.lab.study.results import write_comparison_json, write_comparison_page
    from colm.lab.study.runs import answer_one, check_places, refuse_run, run_one, ways_to_start

    if args.equal == "time" and launcher and settings.selection.keep_count is not None:
        raise ConfigError(
            f"--equal time counts one process, but selection.keep_count={settings.selection.keep_count} is for all "
            "processes that --launcher starts; set selection.keep instead."
        )
    refuse_run(out)
    check_rates(args.rates or ())
    seed = free_seed(args.seeds, args.rates_seed)
    study = Study(args.config, args.overrides, equal=args.equal)
    methods = [*args.methods, *batch_methods(args.batches)]
    runs = study.plan(methods, args.seeds, decided=not args.rates)
    if data:
        asked = read_asked(data, options, next(iter(runs.values())))
    training, answering = ways_to_start(launcher, server, settings.training)

    def train(runs: Mapping[Path, Mapping[str, Any]], *, counts: bool) -> None:
        todo = [folder for folder in runs if not RunFolder(folder).finished]
        check_places(out, todo)
        say(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished.")
        for number, folder in enumerate(todo, start=1):
            say(f"[{number}/{len(todo)}] {folder.relative_to(out)}")
            run_one(folder, runs[folder], training)
            finished = [other for other in runs if RunFolder(other).finished]
            require_same(finished, RunFolder(folder).fingerprint(), runs[folder])
            if counts and data:
                answer_one(folder, data, options, answering)
            if counts:
                write_comparison_json(out, study.operations)

    if args.rates:
        say(f"Learning rates, on seed {seed}:")
        search = study.plan_search(methods, args.rates, seed)
        train(search, counts=False)
        rates = find_rates(out, search)
        for line in describe_rates(rates):
            say(line)
        runs = study.plan(methods, args.seeds, {method: found.best for method, found in rates.items()})
    train(runs, counts=True)
    for folder in runs if data else ():
        if not is_answered(folder, asked):
            say(f"Answers of {folder.relative_to(out)}")
            answer_one(folder, data, options, answering)
    write_comparison_json(out, study.operations)
    page = write_comparison_page(out)
    if args.json:
        return list_comparison(out, page)
    console = make_console()
    for table in _tables(RunFolder(out).read(COMPARE_NAME)):
        console.print(table)
    sentence, differences = conclude(read_comparison(out))
    for text in (*differences, sentence):
        console.print(text, highlight=False)
    print(f"Written to {page}.")
    return None


def _tables(comparison: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Table]:
    """Return a table of losses and times, and one of answers if the runs gave any: each fits into 80 columns."""
    held_keys = {key for by_seed in comparison.values() for run in by_seed.values() for key in run}
    exact = [key for key in ("exact_in", "exact_out") if key in held_keys]
    losses, answers = [], []

    def mean(runs: Sequence[Mapping[str, Any]], key: str) -> float | None:
        held = [run[key] for run in runs if run.get(key) is not None]
        return fmean(held) if held else None

    def show(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    for name, by_seed in comparison.items():
        runs = list(by_seed.values())
        steps, seconds = mean(runs, "steps"), mean(runs, "seconds")
        losses.append(
            (
                name,
                str(len(runs)),
                *(show(mean(runs, key), 4) for key in ("macro", "micro", "small", "big")),
                show(seconds / steps if seconds and steps else None, 3),
                f"{(mean(runs, 'selection_seconds') or 0.0) / seconds:.0%}" if seconds else "-",
            )
        )
        answers.append((name, str(len(runs)), *(show(mean(runs, key), 4) for key in exact)))
    tables = [_table("Mean over seeds", ("seeds", "macro", "micro", "small", "big", "s/step", "selection"), losses)]
    if exact:
        tables.append(
            _table("Exact answers, mean over seeds", ("seeds", *(k.replace("_", " ") for k in exact)), answers)
        )
    return tables


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of methods, whose names may take several lines."""
    table = Table(title=title)
    table.add_column("method", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
