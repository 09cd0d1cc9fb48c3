"""The `colm` command: one file a subcommand."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Sequence

from colm import __version__
from colm.errors import ColmError

_OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0, or 2 after an error of the user's making."""
    parser = argparse.ArgumentParser(
        prog="colm", description="Fine-tune causal language models on data mixtures by mini-batch coresets."
    )
    parser.add_argument("--version", action="version", version=f"colm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = _add(commands, "train", "fine-tune a model")
    again = train.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from the last complete checkpoint")
    again.add_argument("--overwrite", action="store_true", help="delete the run that the output folder holds")
    _add(commands, "sources", "show the mixture before training")
    compare = _add(commands, "compare", "train with several methods and seeds, and compare them")
    compare.add_argument(
        "--methods", nargs="+", default=None, metavar="METHOD", help="such as random control colm colm+keep=0.25"
    )
    compare.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="default: 0 1 2")
    compare.add_argument(
        "--launcher", default="", help="what starts a run's processes: 'torchrun --nproc_per_node 4'; default one"
    )
    report = commands.add_parser("report", help="write a page about runs", description="Write a page about runs.")
    report.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a run, or of a comparison")
    report.add_argument("--out", metavar="FILE.html", help="default: report.html in the run's folder")
    # Overrides may stand anywhere; argparse would take one after --seeds for a seed.
    given = list(sys.argv[1:] if arguments is None else arguments)
    overrides = [argument for argument in given if _OVERRIDE.match(argument)]
    options = parser.parse_args([argument for argument in given if not _OVERRIDE.match(argument)])
    options.overrides = overrides
    if options.command == "report" and overrides:
        parser.error(f"colm report takes no settings ({overrides[0]}); a folder of that name is ./{overrides[0]}")

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("colm").setLevel(logging.INFO)
    try:
        # Imported here: transformers takes seconds, which --help should not.
        if options.command == "train":
            from colm.cli.train import train_command

            train_command(options.config, options.overrides, resume=options.resume, overwrite=options.overwrite)
        elif options.command == "compare":
            from colm.cli.compare import DEFAULT_METHODS, compare_command

            compare_command(
                options.config,
                options.overrides,
                methods=options.methods or DEFAULT_METHODS,
                seeds=options.seeds,
                launcher=options.launcher,
            )
        elif options.command == "report":
            from colm.cli.report import report_command

            report_command(options.runs, options.out)
        else:
            from colm.cli.sources import sources_command

            sources_command(options.config, options.overrides)
    except ColmError as error:
        print(f"colm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("colm: interrupted; go on with --resume", file=sys.stderr)
        return 130
    return 0


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=what, description=what.capitalize() + ".")
    command.add_argument("config", metavar="CONFIG.yaml", help="the run's configuration")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace those of the file: selection.keep=0.25"
    )
    return command
