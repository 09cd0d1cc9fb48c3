"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import logging
import os
from typing import TypeAlias

from colm.errors import ConfigError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `ArgumentParser.add_subparsers` returns."""


def add_command(commands: Commands, name: str, help: str) -> argparse.ArgumentParser:
    """Add a command and return its parser."""
    return commands.add_parser(name, help=help, description=f"{help[:1].upper()}{help[1:]}.")


def add_config(
    commands: Commands, name: str, help: str, *, what: str = "CONFIG.yaml", nargs: str | None = None
) -> argparse.ArgumentParser:
    """Add a command that takes a configuration, or a run's record, and settings; return its parser."""
    command = add_command(commands, name, help)
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


def require_one_process(what: str, instead: str) -> None:
    """Raise ConfigError if a launcher has started several processes of a command that runs in one.

    Args:
        what: the command.
        instead: what to do.
    """
    ranks = int(os.environ.get("WORLD_SIZE") or 1)
    if ranks > 1:
        raise ConfigError(f"{what} runs in one process, but the launcher starts {ranks}; {instead}.")


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --json; the command's `run` then returns the document, which alone is printed."""
    parser.add_argument("--json", action="store_true", help=f"print only one JSON document: {what}")


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add --verbose and --quiet, which set `verbosity`, the level of colm's log."""
    group = parser.add_mutually_exclusive_group()
    for short, long, level, help in (
        ("-v", "--verbose", logging.DEBUG, "also log details, and where an error was raised"),
        ("-q", "--quiet", logging.WARNING, "print only warnings, errors, and the result"),
    ):
        # Suppressed: a command's default would replace what is given before its name.
        group.add_argument(
            short, long, dest="verbosity", action="store_const", const=level, default=argparse.SUPPRESS, help=help
        )
