"""What a killed and resumed run must have in common with one that was never killed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
"""Audit events of file operations, next to ``open`` for writing."""

LINES = ("selection.jsonl", "evaluations.jsonl", "losses.jsonl")
TIMES = ("seconds", "step_seconds")


def outcome(folder: Path) -> dict[str, Any]:
    """Return the output on which two runs must agree."""
    weights = next(folder.glob("*.safetensors")).read_bytes()
    found: dict[str, Any] = {"weights": hashlib.sha256(weights).hexdigest()}
    for name in (one for one in LINES if (folder / one).exists()):
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        found[name] = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    return found


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Describe the difference: the weights, a file's number of lines, or its first differing line."""
    differing = [] if found["weights"] == expected["weights"] else ["weights"]
    for name in LINES:
        ours, theirs = found.get(name, []), expected.get(name, [])
        if [line["step"] for line in ours] != [line["step"] for line in theirs]:
            differing.append(f"{name}: steps {[line['step'] for line in ours]}")
        elif ours != theirs:
            a, b = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
            differing.append(f"{name}: {[(key, a[key], b[key]) for key in a if a[key] != b.get(key)]}")
    return differing
