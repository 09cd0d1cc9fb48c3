"""The section of the page on whether things are right on the device: what each test came to, and what it measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SUBJECTS = {
    "test_picks.py": "Picks from the same features, against the CPU",
    "test_selection.py": "Whole selection steps, against the CPU",
    "test_features.py": "Features, against one backward a row",
    "test_attention.py": "Attention kernels and gradient checkpointing",
    "test_reuse.py": "Training from the selection pass's forward",
    "test_synchronization.py": "Waits between the selection pass and the coreset",
    "test_nonfinite.py": "Rows that are not finite",
    "test_resume.py": "Killed and resumed runs",
    "test_trainer.py": "The Trainer in bfloat16 and on 4 bits",
    "test_torch_compile.py": "A compiled model",
}
"""What each file of tests/gpu is about, in the order of the page."""

RED = "🔴"


def write_section(lines: list[dict[str, Any]]) -> str:
    """Return the section in Markdown, from the lines of figures; the last line of a test counts."""
    last = {line["unit"]: line for line in lines}
    if not last:
        return f"## Right\n\n{RED} No test has ended.\n"
    faults = {unit: line["fault"] for unit, line in last.items() if "fault" in line}
    counts = [sum(line.get("outcome") == outcome for line in last.values()) for outcome in ("passed", "skipped")]
    seconds = sum(line.get("seconds", 0.0) for line in last.values())
    parts = [
        "## Right",
        f"{counts[0]} tests passed, {counts[1]} were skipped and {len(faults)} failed, in {seconds:.0f} s. What stands "
        "beside them was measured by the test; its bound and the reason for it are in `tests/gpu`.",
        *(f"{RED} {unit}: {_plain(text)}" for unit, text in faults.items()),
    ]
    by_file: dict[str, list[dict[str, Any]]] = {}
    for unit, line in last.items():
        by_file.setdefault(unit.partition("::")[0], []).append(line)
    for name in sorted(by_file, key=_place):
        parts += [f"### {SUBJECTS.get(name, name)}", _table(by_file[name])]
    return "\n\n".join(parts) + "\n"


def _place(name: str) -> tuple[int, str]:
    order = list(SUBJECTS)
    return (order.index(name) if name in order else len(order), name)


def _table(lines: Iterable[dict[str, Any]]) -> str:
    rows = ["| test | outcome | seconds | measured |", "| --- | --- | ---: | --- |"]
    for line in lines:
        name = line["unit"].partition("::")[2] or line["unit"]
        words = _plain(name.removeprefix("test_").replace("_", " "))
        if "fault" in line:
            outcome, measured = f"{RED} failed", line["fault"]
        elif line["outcome"] == "skipped":
            outcome, measured = "skipped", line["reason"]
        else:
            outcome = line["outcome"]
            measured = "; ".join(f"{key.replace('_', ' ')} {value}" for key, value in line["measured"].items())
        seconds = f"{line['seconds']:.1f}" if "seconds" in line else ""
        rows.append(f"| {words} | {outcome} | {seconds} | {_plain(measured)} |")
    return "\n".join(rows)


def _plain(text: str) -> str:
    """Return text that neither ends a cell nor begins markup."""
    for mark in "\\`*_|<>[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
