"""Files of rows and settings, and what a folder contains."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    """Write rows as JSON lines; return the path as settings name it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_settings(folder: Path, values: dict[str, Any]) -> str:
    """Write run.yaml; return its path as commands take it."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def contents(path: Path) -> dict[str, bytes]:
    """Return the files below a folder by their paths in it."""
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
