"""`colm report`: a page about one run, several runs side by side, or a comparison."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from colm.errors import ConfigError
from colm.lab.cli.arguments import Commands, add_command, add_json
from colm.lab.cli.documents import list_comparison, list_runs

PAGE_NAME = "report.html"


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "report", "write a page about runs")
    command.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a run or a comparison")
    command.add_argument("--out", metavar="FILE.html", help="output file (default: report.html in the run's folder)")
    add_json(command, "verdicts and sources of each run, or a comparison's results, and the page's path")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Write the page and print its path.

    By default it is `report.html` in the run's folder, or in the current folder for several runs; `compare.html` in a
    comparison's folder.

    Raises:
        ConfigError: a folder contains no run, two are the same, or the page cannot be written.
    """
    if args.overrides:
        first = args.overrides[0]
        args.parser.error(f"colm report takes no settings ({first}); a folder of that name is ./{first}")
    from colm.lab.report import read_run, write_report
    from colm.lab.report.runs import name_folders
    from colm.lab.study.results import write_comparison_page
    from colm.step.record import COMPARE_NAME

    paths = [Path(folder) for folder in args.runs]
    out = Path(args.out) if args.out else None
    compared = [path for path in paths if (path / COMPARE_NAME).is_file()]
    if compared and len(paths) > 1:
        raise ConfigError(
            f"{compared[0]} contains a comparison, which has its own page: give it alone, or give its runs "
            "(<method>/seed-<seed>)."
        )
    if compared:
        page = write_comparison_page(paths[0], out)
        if args.json:
            return list_comparison(paths[0], page)
    else:
        runs = [read_run(path, name) for path, name in zip(paths, name_folders(paths), strict=True)]
        page = write_report(runs, out or (paths[0] if len(paths) == 1 else Path()) / PAGE_NAME)
        if args.json:
            return list_runs(runs, page)
    print(f"Written to {page}.")
    return None
