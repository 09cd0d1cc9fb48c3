"""The console of the tables, which shows what is printed as it is; and what --quiet leaves out."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import Progress


def make_console(*, quiet: bool = False) -> Console:
    """Return a console that takes no text for markup or for an emoji's code, and shows nothing if it is quiet.

    Sources, words, clusters and paths come from data: ``[bold]``, ``[/x]`` and ``:fire:`` are names like others, in
    tables and their titles too.
    """
    return _Console(markup=False, emoji=False, quiet=quiet)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave a closed output to the command, instead of ending the process."""
        raise BrokenPipeError


def say(text: str) -> None:
    """Print what a command is doing now, unless it is quiet."""
    if not _is_quiet():
        print(text, flush=True)


@contextmanager
def make_progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar within the block, unless the command is quiet; yield what sets its numbers done and total."""
    with Progress(console=console, transient=True, disable=_is_quiet()) as progress:
        bar = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether somebody sees what is written to, or types what is read from, a standard stream."""
    return stream is not None and not stream.closed and stream.isatty()


def hide_progress(*, datasets_only: bool) -> None:
    """Hide the progress bars of other packages, here and in child processes.

    Args:
        datasets_only: hide only those of `datasets`, one for each file and split; colm shows one for all.
    """
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    for name in () if datasets_only else ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ[name] = "1"
    if "datasets" in sys.modules:  # it has read its variable
        sys.modules["datasets"].disable_progress_bars()


def _is_quiet() -> bool:
    return not logging.getLogger("colm").isEnabledFor(logging.INFO)
