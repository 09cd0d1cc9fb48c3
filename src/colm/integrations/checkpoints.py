"""Checkpoints that are whole, or not taken."""

from __future__ import annotations

import json
from pathlib import Path

from colm.record import replace_file

MARKER = "coreset_complete.json"
PASSING = "checkpoint-is-incomplete.txt"
"""The Trainer's just-in-time checkpoint has this file in the folder until it returns."""


def begin_checkpoint(folder: Path) -> None:
    """Take the marker away from a folder that is about to be written again."""
    (folder / MARKER).unlink(missing_ok=True)


def mark_complete(folder: Path) -> None:
    """Write the marker, a list of the checkpoint's files with their sizes in bytes; call it last."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != PASSING]
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    replace_file(folder / MARKER, json.dumps(files, indent=2, sort_keys=True))


def is_complete(folder: Path) -> bool:
    """Return whether the checkpoint was written to its end, and none of its files is gone or cut short since."""
    try:
        files = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except FileNotFoundError:  # never marked, or its deletion was begun
        return False


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """Return the checkpoint of the latest step that is complete, or None."""
    found = [
        (int(folder.name.rpartition("-")[2]), folder)
        for folder in output_dir.glob("checkpoint-*")
        if folder.name.rpartition("-")[2].isdigit() and is_complete(folder)
    ]
    return max(found)[1] if found else None
