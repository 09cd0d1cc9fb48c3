"""The console of the tables: what is printed is shown as it is."""

from __future__ import annotations

from rich.console import Console


def make_console() -> Console:
    """Return a console that takes no text for markup or for an emoji's code.

    Sources, words, clusters and paths come from data: ``[bold]``, ``[/x]`` and ``:fire:`` are names like others, in
    tables and their titles too.
    """
    return _Console(markup=False, emoji=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave a closed output to the command, instead of ending the process."""
        raise BrokenPipeError
