"""The console of the tables: what is printed is shown as it is."""

from __future__ import annotations

from rich.console import Console


def make_console() -> Console:
    """Return a console that takes no text for markup or for an emoji's code.

    Sources, words, clusters and paths come from data: ``[bold]``, ``[/x]`` and ``:fire:`` are names like others, in
    tables and their titles too.
    """
    return Console(markup=False, emoji=False)
