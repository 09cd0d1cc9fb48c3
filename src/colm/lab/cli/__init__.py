"""The `colm` command: one module per subcommand."""

from __future__ import annotations

import argparse
import io
import logging
import os
import platform
import select
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module

from colm import __version__
from colm.errors import ColmError, Interrupted, StoppedEarly
from colm.lab.cli.arguments import add_verbosity
from colm.lab.cli.console import hide_progress, is_terminal
from colm.lab.cli.documents import to_json
from colm.lab.evaluate.options import parse_arguments

COMMANDS = (
    "init",
    "train",
    "sources",
    "features",
    "plan",
    "probe",
    "compare",
    "replay",
    "report",
    "eval",
    "chat",
    "merge",
    "schema",
    "env",
    "completion",
)
"""Modules of this package, each with ``register(commands)`` and ``run(args)``; what is heavy is imported in `run`.

With ``--json``, `run` returns the document, and whatever else it prints goes to the standard error."""

_STOPPED = 143  # the shells' status for SIGTERM
_INTERRUPTED = 130
_UNREAD = 141  # the shells' status for SIGPIPE

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    The status is 0; 2 after a user error; 130, 141 and 143 after SIGINT, a closed output and SIGTERM, as in shells.
    """
    args = parse_arguments(build_parser(), sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what is outside the terminal's encoding must not stop the program
    rank = os.environ.get("RANK", "0")
    if rank != "0" and args.verbosity == logging.INFO:
        args.verbosity = logging.WARNING  # the first process says the same
    origin = "" if rank == "0" else f"[rank {rank}] "
    logging.basicConfig(level=logging.WARNING, format=f"{origin}%(levelname)s %(name)s: %(message)s")
    logging.getLogger("colm").setLevel(args.verbosity)
    hide_progress(datasets_only=args.verbosity <= logging.INFO and is_terminal(sys.stderr))
    logger.debug("colm %s, Python %s: %s", __version__, platform.python_version(), args.command)
    status = _run(args)
    logger.debug("Exit status %d; %.1f s of this process's CPU time.", status, time.process_time())
    if args.command in ("train", "replay") and status in (0, _STOPPED, _UNREAD):  # all ranks end the same way
        from colm.step.ranks import leave_ranks

        leave_ranks()
    return status


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="colm", description="Fine-tune causal language models on data mixtures by mini-batch coresets."
    )
    parser.add_argument("--version", action="version", version=f"colm {__version__}")
    parser.set_defaults(parser=parser, verbosity=logging.INFO)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"{__name__}.{name}").register(commands)
    for each in (parser, *commands.choices.values()):
        add_verbosity(each)
    return parser


def _run(args: argparse.Namespace) -> int:
    """Run the chosen command and return the exit status."""
    try:
        command = import_module(f"{__name__}.{args.command}")
        if getattr(args, "json", False):
            with redirect_stdout(sys.stderr):
                document = command.run(args)
            print(to_json(document, getattr(sys.stdout, "encoding", None)))  # None behind >&-
        else:
            command.run(args)
        print(end="", flush=True)  # notices a closed output here, not when Python exits
    except ColmError as error:
        logger.debug("Raised here:", exc_info=True)
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
