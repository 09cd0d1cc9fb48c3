"""The page of `colm probe`: measurements and advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colm.lab.report.page import write_page


def write_probe_page(
    found: Mapping[str, Any], out: Path, *, name: str, facts: Sequence[tuple[str, str]], window: int, exponent: float
) -> Path:
    """Write the page and return its path.

    Args:
        found: what the command prints with ``--json``.
        out: the HTML file; its folder must exist.
        name: the configuration's name, for the title.
        facts: names and values for the head of the page.
        window: steps whose mean error was judged.
        exponent: from worth by noise to worth by loss.

    Raises:
        ConfigError: the file cannot be written.
    """
    return write_page(
        out,
        "probe.html",
        title=f"colm probe: {name}",
        name=name,
        facts=facts,
        window=window,
        exponent=exponent,
        **found,
    )
