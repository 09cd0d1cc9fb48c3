"""`colm report`: a page about one run, several runs side by side, or a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from colm.errors import ConfigError
from colm.lab.report import read_run, write_comparison, write_report
from colm.lab.report.runs import name_folders
from colm.lab.study.methods import METHODS
from colm.step.record import COMPARE_NAME

PAGE_NAME = "report.html"


def report_command(folders: Sequence[str], out: str | None) -> None:
    """Write the page and print its path.

    Args:
        folders: output folders of runs, or of one comparison.
        out: the HTML file. By default `report.html` in the run's folder, or in the current folder for several
            runs; `compare.html` in a comparison's folder.

    Raises:
        ConfigError: a folder contains no run, two are the same, or the page cannot be written.
    """
    paths = [Path(folder) for folder in folders]
    compared = [path for path in paths if (path / COMPARE_NAME).is_file()]
    if compared and len(paths) > 1:
        raise ConfigError(
            f"{compared[0]} contains a comparison, which has its own page: give it alone, or give its runs "
            "(<method>/seed-<seed>)."
        )
    if compared:
        page = write_comparison_page(paths[0], Path(out) if out else None)
    else:
        runs = [read_run(path, name) for path, name in zip(paths, name_folders(paths), strict=True)]
        page = write_report(runs, Path(out) if out else (paths[0] if len(paths) == 1 else Path()) / PAGE_NAME)
    print(f"Written to {page}.")


def write_comparison_page(folder: Path, out: Path | None = None) -> Path:
    """Write a comparison's page, with descriptions of its methods, and return its path. Raises ConfigError."""
    return write_comparison(folder, out=out, descriptions={name: method.what for name, method in METHODS.items()})
