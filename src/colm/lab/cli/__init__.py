"""The `colm` command: one module per subcommand."""

from __future__ import annotations

import argparse
import io
import logging
import os
import select
import sys
from collections.abc import Sequence

from colm import __version__
from colm.errors import ColmError, Interrupted, StoppedEarly
from colm.lab.cli import schema
from colm.lab.evaluate.options import add_eval, eval_options, parse_arguments

_STOPPED = 143  # the shells' status for SIGTERM
_INTERRUPTED = 130
_UNREAD = 141  # the shells' status for SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    The status is 0; 2 after a user error; 130, 141 and 143 after SIGINT, a closed output and SIGTERM, as in shells.
    """
    parser = argparse.ArgumentParser(
        prog="colm", description="Fine-tune causal language models on data mixtures by mini-batch coresets."
    )
    parser.add_argument("--version", action="version", version=f"colm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = _add(commands, "train", "fine-tune a model")
    again = train.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="resume from the last complete checkpoint, if any")
    again.add_argument("--overwrite", action="store_true", help="replace the run in the output folder")
    train.add_argument("--profile", action="store_true", help="profile steps 3 to 5: time by stage, and a trace")
    sources = _add(commands, "sources", "show the mixture before training", nargs="?")
    sources.add_argument(
        "--out", metavar="FILE", help="output file (default: sources.html in the output folder); see --cluster"
    )
    sources.add_argument(
        "--cluster",
        metavar="DATA",
        help="cluster this file or hub data set instead, and write the labels to --out LABELS.parquet",
    )
    plan = _add(commands, "plan", "predict memory and time without a GPU, and propose sizes that fit")
    plan.add_argument(
        "--gpu-memory", required=True, metavar="SIZE", help="memory of one GPU: 24GiB, 80GB, or bytes: 80e9"
    )
    plan.add_argument(
        "--sequence-length", type=int, metavar="N", help="tokens in the longest rows (default: data.max_length)"
    )
    plan.add_argument(
        "--labelled",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="fraction of each row's tokens that have a label (default: 1)",
    )
    plan.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    compare = _add(commands, "compare", "train with several methods and seeds, and compare the results")
    compare.add_argument(
        "--methods",
        nargs="+",
        default=None,
        metavar="METHOD",
        help="methods, such as: random control colm colm+keep=0.25",
    )
    compare.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="seeds of each method (default: 0 1 2)"
    )
    compare.add_argument(
        "--launcher",
        default="",
        help="command that starts a run's processes: 'torchrun --nproc_per_node 4' (default: one process)",
    )
    compare.add_argument(
        "--eval-data",
        nargs="+",
        default=[],
        metavar="FILE",
        help="questions that every run answers, as colm eval --data",
    )
    compare.add_argument("--eval-options", default="", help="options for colm eval: --eval-options='--limit 200'")
    replay = _add(commands, "replay", "train again on the rows that a run recorded", what="RUN/selection.jsonl")
    for flag, what in (
        ("--resume", "resume from the last checkpoint, if any"),
        ("--overwrite", "replace an earlier replay"),
    ):
        replay.add_argument(flag, action="store_true", help=what)
    report = commands.add_parser("report", help="write a page about runs", description="Write a page about runs.")
    report.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a run or a comparison")
    report.add_argument("--out", metavar="FILE.html", help="output file (default: report.html in the run's folder)")
    add_eval(commands)
    schema.register(commands)
    options = parse_arguments(parser, sys.argv[1:] if arguments is None else arguments)
    if options.command == "sources" and not options.config and not options.cluster:
        parser.error("colm sources needs CONFIG.yaml, or --cluster DATA")
    if options.command == "report" and options.overrides:
        first = options.overrides[0]
        parser.error(f"colm report takes no settings ({first}); a folder of that name is ./{first}")

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # names outside the terminal's encoding must not stop the program
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("colm").setLevel(logging.INFO)
    status = _run(options)
    if options.command in ("train", "replay") and status in (0, _STOPPED, _UNREAD):  # all ranks end the same way
        from colm.step.ranks import leave_ranks

        leave_ranks()
    return status


def _run(options: argparse.Namespace) -> int:
    """Run the chosen command and return the exit status."""
    try:
        # Imported here: transformers takes seconds to import, and --help should be fast.
        if options.command == "train":
            from colm.lab.cli.train import train_command

            train_command(
                options.config,
                options.overrides,
                resume=options.resume,
                overwrite=options.overwrite,
                profile=options.profile,
            )
        elif options.command == "plan":
            from colm.lab.cli.plan import plan_command

            plan_command(
                options.config,
                options.overrides,
                gpu_memory=options.gpu_memory,
                sequence_length=options.sequence_length,
                labelled=options.labelled,
                as_json=options.json,
            )
        elif options.command == "compare":
            from colm.lab.cli.compare import DEFAULT_METHODS, compare_command

            compare_command(
                options.config,
                options.overrides,
                methods=options.methods or DEFAULT_METHODS,
                seeds=options.seeds,
                launcher=options.launcher,
                eval_data=options.eval_data,
                eval_options=options.eval_options,
            )
        elif options.command == "replay":
            from colm.lab.cli.replay import replay_command

            replay_command(options.config, options.overrides, resume=options.resume, overwrite=options.overwrite)
        elif options.command == "report":
            from colm.lab.cli.report import report_command

            report_command(options.runs, options.out)
        elif options.command == "eval":
            from colm.lab.cli.eval import eval_command

            eval_command(options.runs, options.overrides, eval_options(options))
        elif options.command == "schema":
            schema.run(options)
        else:
            from colm.lab.cli.cluster import cluster_command
            from colm.lab.cli.sources import sources_command

            if options.cluster:
                cluster_command(options.cluster, options.config, options.overrides, options.out)
            else:
                sources_command(options.config, options.overrides, options.out)
        print(end="", flush=True)  # notices a closed output here, not when Python exits
    except ColmError as error:
        lines = map(str.strip, str(error).splitlines())  # messages of other packages may have several lines
        print(f"colm: {' '.join(filter(None, lines))}", file=sys.stderr)
        return {StoppedEarly: _STOPPED, Interrupted: _INTERRUPTED}.get(type(error), 2)
    except KeyboardInterrupt:  # a run that has started says how to resume
        print("colm: interrupted; run the same command again", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        if not _stop_unread():
            raise
        return _UNREAD
    except Exception as error:
        from colm.lab.run.disk import why_not_written

        why = why_not_written(error)
        if why is None:
            raise
        print(
            f"colm: a file cannot be written or read ({why}). Free some space, or choose another place.",
            file=sys.stderr,
        )
        return 2
    return 0


def _stop_unread() -> bool:
    """Return whether the output is closed, as after ``| head``; if so, discard further output."""
    try:
        number = sys.stdout.fileno()
        poll = select.poll()
    except (AttributeError, OSError):  # not a file, or not supported by the system
        return False
    poll.register(number, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # otherwise Python would fail again on exit
    return True


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    help: str,
    *,
    what: str = "CONFIG.yaml",
    nargs: str | None = None,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=help.capitalize() + ".")
    command.add_argument(
        "config",
        metavar=what,
        nargs=nargs,
        help="configuration of the run" if what == "CONFIG.yaml" else "record of the run, or its folder",
    )
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that override the file: selection.keep=0.25"
    )
    return command
