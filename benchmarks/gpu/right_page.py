"""The page's section on whether results are right on the device: outcomes and measurements of its tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cells import RED, plain, table

SUBJECTS = {
    "test_picks.py": "Picks from the same features, compared with the CPU",
    "test_selection.py": "Whole selection steps, compared with the CPU",
    "test_features.py": "Features, compared with one backward per row in float64",
    "test_attention.py": "Attention kernels, joined rows and gradient checkpointing",
    "test_row_gradients.py": "Gradients as vectors (`colm features`)",
    "test_reuse.py": "Training from the selection pass's forward",
    "test_synchronization.py": "Waits between the selection pass and the coreset",
    "test_engines.py": "FSDP2 in one process, compared with the model that is not sharded",
    "test_fused.py": "The head and the loss in one kernel (`train_head: fused`)",
    "test_nonfinite.py": "Non-finite rows",
    "test_resume.py": "Killed and resumed runs",
    "test_trainer.py": "The Trainer in bfloat16 and on 4 bits",
    "test_with_torch_compile.py": "A compiled model",
}
"""What each file of tests/gpu is about, in the order of the page."""

ONE_BY_ONE = {"test_features_are_gradients": 1, "test_weights_are_those_without_reuse": 1}
ONE_BY_ONE |= {"test_waits_do_not_grow_with_the_budget": 0, "test_flash_forced": 0}
"""Tests whose cases have their own table rows, and how many trailing parts of a case's name to omit."""


def write_section(lines: list[dict[str, Any]]) -> str:
    """Return the section in Markdown from the lines of figures; the last line of a test counts."""
    last = {line["unit"]: line for line in lines}
    if not last:
        return f"## Right\n\n{RED} No test has finished.\n"
    faults = {unit: line["fault"] for unit, line in last.items() if "fault" in line}
    passed, skipped = (
        sum(line.get("outcome") == word and "::" in line["unit"] for line in last.values())
        for word in ("passed", "skipped")
    )
    seconds = sum(line.get("seconds", 0.0) for line in last.values())
    parts = [
        "## Right",
        f"{passed} tests passed, {skipped} were skipped and {len(faults)} failed, in {seconds:.0f} s. Figures "
        "are the lowest and highest over a row's cases; `tests/gpu` states their bounds and the reasons.",
        *(f"{RED} {plain(unit)}: {plain(text)}" for unit, text in faults.items()),
    ]
    head = [["test", "passed", "seconds", "measured"], ["---", "---:", "---:", "---"]]
    by_file: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for unit, line in last.items():
        name, _, test = unit.partition("::")
        by_file.setdefault(name, {}).setdefault(_row_of(test), []).append(line)
    for name in sorted(by_file, key=_place):
        if set(by_file[name]) != {""}:  # a module has its own line only if it could not be read
            parts += [
                f"### {SUBJECTS.get(name, name)}",
                table([*head, *(_row(test, held) for test, held in by_file[name].items() if test)]),
            ]
    return "\n\n".join(parts) + "\n"


def _row_of(test: str) -> str:
    """Return the name of the row that a test's line goes to."""
    function, _, case = test.partition("[")
    if function not in ONE_BY_ONE:
        return function
    parts = case.removesuffix("]").split("-")
    return f"{function}, {', '.join(parts[: len(parts) - ONE_BY_ONE[function]])}"


def _place(name: str) -> tuple[int, str]:
    order = list(SUBJECTS)
    return (order.index(name) if name in order else len(order), name)


def _row(test: str, lines: Sequence[dict[str, Any]]) -> list[str]:
    name = plain(test.removeprefix("test_").replace("_", " "))
    faults = [line for line in lines if "fault" in line]
    skipped = [line for line in lines if line.get("outcome") == "skipped"]
    passed = [line for line in lines if line.get("outcome") == "passed"]
    outcome = f"{len(passed)} of {len(lines)}"
    notes = _measured([line["measured"] for line in passed])
    notes += [f"skipped: {reason}" for reason in dict.fromkeys(line["reason"] for line in skipped)]
    if faults:
        cases = ", ".join(line["unit"].partition("[")[2].removesuffix("]") or "it" for line in faults)
        outcome, notes = f"{RED} {outcome}", [f"failed: {cases}", *notes]
    seconds = sum(line.get("seconds", 0.0) for line in lines)
    return [name, outcome, f"{seconds:.1f}", plain("; ".join(notes))]


def _measured(held: Sequence[dict[str, Any]]) -> list[str]:
    """Return each figure with its range over the cases that have it, and texts unchanged."""
    notes = []
    for name in dict.fromkeys(name for figures in held for name in figures):
        values = [figures[name] for figures in held if name in figures]
        if all(isinstance(value, int | float) for value in values):
            low, high = min(values), max(values)
            shown = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        else:
            shown = ", ".join(dict.fromkeys(map(str, values)))
        notes.append(f"{name.replace('_', ' ')} {shown}")
    return notes
