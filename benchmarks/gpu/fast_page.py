"""The page's section on "fast": ratios, seconds and memory, the plan compared with the allocator, the profile."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cells import RED, plain, table_of_numbers
from fast_cases import LEAN
from figures import read_lines

RATIOS = {
    "step_over_ideal": "step / ideal",
    "selection_over_floor": "selection / floor",
    "memory_over_coreset": "memory / coreset's",
    "memory_over_pool": "memory / pool's",
    "step_over_pool": "step / pool",
    "step_over_plain": "step / plain",
    "matched_over_ideal": "matched / ideal",
    "control_over_plain": "control / plain",
}
WAYS = {
    "floor": "floor of the selection",
    "kept": "training the kept rows",
    "colm": "coreset step",
    "matched": "matched step",
    "control": "control",
    "pool": "training the pool",
    "plain": "plain Trainer, K rows",
    "by length": "plain Trainer, K rows by length",
    "lean": "lean step, K rows",
    "chunked": "lean step in chunks, K rows",
    "fused": "lean step in a kernel, K rows",
}
PLANNED = {"pool": "pool", "coreset_rows": "kept rows", "coreset_step": "coreset step"}

ABOUT = """\
The floor of a selection is a forward of the pool, the head on labeled tokens and the backward to the value projection;
the ideal step is the floor plus training the kept rows. Every round runs all ways of a table row in turn on the same
rows, including the optimizer step. Weights are bfloat16, adapters float32, the forward in autocast, as with
`bf16: true`. A peak is the allocator's peak above weights and the optimizer's state; `reuse_forward` holds the layer
inputs of the whole pool. Nothing is compiled, and each way runs once before it is timed."""

ABOUT_LEAN = """\
The same rows as the plain Trainer's, which pads each micro-batch of random rows and computes all logits. By length: its
own loss, rows of about one length in each micro-batch, as with `group_by_length`; the Trainer then sorts rows of many
steps and pads still less. Lean: what `CoresetTrainer` does, rows by length, and the head on labeled positions, all at
once (`train_head: labeled`), `chunked`, or `fused`. Three quarters of the tokens are labeled; with fewer, a lean step
gains more. Ratios to the plain Trainer's step."""


def write_section(lines: list[dict[str, Any]]) -> str:
    """Return the section in Markdown, from the lines of `fast.jsonl`."""
    last = {line["unit"]: line for line in lines if "fault" not in line}  # the later line wins if a unit appears twice
    cases = [line for line in last.values() if "ratios" in line]
    plans = [line for line in last.values() if "ways" in line]
    profiles = [line for line in last.values() if "operators" in line]
    parts = ["## Fast and small", *_faults(lines)]
    if cases:
        parts += [ABOUT, _setting(cases), _ratios(cases), _seconds(cases)]
    if any("lean" in line["seconds"] for line in cases):
        parts += ["### The lean step and the plain Trainer's", ABOUT_LEAN, _lean(cases)]
    if plans:
        parts += ["### The estimate of `colm plan` and the allocator's peak", _plans(plans)]
    if profiles:
        parts += ["### Where a step's time goes", *map(_profile, profiles)]
    if not lines:
        parts.append("Nothing was measured.")
    return "\n\n".join(parts) + "\n"


def _faults(lines: list[dict[str, Any]]) -> list[str]:
    """Return the faults, without those followed by figures of the same unit from a later slice."""
    told: dict[str, str] = {}
    for line in lines:
        told.pop(line["unit"], None)
        if "fault" in line:
            told[line["unit"]] = line["fault"]
    return ["\n".join(f"- {RED} {unit}: {text}" for unit, text in told.items())] if told else []


def _setting(cases: list[dict[str, Any]]) -> str:
    found = {line.get("gpu", "a CPU") for line in cases}
    rows = {line["rows"] for line in cases}
    pools = ", ".join(map(str, sorted(rows)))
    return f"On {' and '.join(sorted(found))}; pools of {pools} rows. Median (minimum to maximum)."


def _ratios(cases: list[dict[str, Any]]) -> str:
    rows = []
    for line in cases:
        gauges = [gauge for gauge in line["gauges"].values() if gauge]
        cells = [_name(line), str(line["rounds"])]
        cells += [_spread(line["ratios"].get(name), 2) for name in RATIOS]
        rows.append([*cells, _range(gauges, "mhz"), _range(gauges, "watt")])
    return table_of_numbers(["case", "rounds", *RATIOS.values(), "MHz", "W"], rows)


def _seconds(cases: list[dict[str, Any]]) -> str:
    rows = []
    for line in cases:
        for way, what in WAYS.items():
            if way not in line["seconds"]:
                continue
            text = what
            if way == "colm":
                split = (line["seconds"][part][0] for part in ("selection", "picking", "training"))
                text += " (selection {:.3g}, picking {:.3g}, training {:.3g})".format(*split)
            gauge = line["gauges"].get(way) or {}
            told = [f"{gauge[name]:.0f}" if name in gauge else "-" for name in ("mhz", "watt", "celsius")]
            rows.append([_name(line), text, _spread(line["seconds"][way], 3), f"{line['mib'][way]:,.1f}", *told])
    return table_of_numbers(["case", "way", "seconds", "peak, MiB", "MHz", "W", "°C"], rows)


def _lean(cases: list[dict[str, Any]]) -> str:
    rows = []
    for line in cases:
        if "lean" not in line["seconds"]:
            continue
        for way in LEAN:
            why = line["missing"].get(way)
            cells = [_spread(line["ratios"].get(f"{way}: {what}"), 2) for what in ("step", "memory")]
            rows.append([_name(line), f"{WAYS[way]}{f' (not run: {plain(why)})' if why else ''}", *cells])
    return table_of_numbers(["case", "way", "seconds", "peak"], rows)


def _plans(plans: list[dict[str, Any]]) -> str:
    rows = [
        [
            line["unit"].removesuffix(" plan"),
            PLANNED[way],
            f"{found['planned_mib']:,.1f}",
            f"{found['measured_mib']:,.1f}",
            f"{'' if found['near'] else f'{RED} '}{found['ratio']:.3f}",
        ]
        for line in plans
        for way, found in line["ways"].items()
    ]
    return table_of_numbers(["case", "trains", "planned, MiB", "held, MiB", "held / planned"], rows)


def _profile(line: dict[str, Any]) -> str:
    idle = (
        "the device was not observed" if line["idle_share"] is None else f"the device idle for {line['idle_share']:.0%}"
    )
    unit, rows = line["unit"].removesuffix(" profile"), line["rows"]
    head = (
        f"{unit}, a step of {rows} rows under the profiler, which slows down Python: {line['wall_seconds']:.3g} "
        f"s, {line['device_seconds']:.3g} s in operators, {idle}; {line['launches']:,} kernels launched, "
        f"{line['waits']:,} waits for the device."
    )
    where = "on the device" if line["kernels_seen"] else "on the CPU"
    tables = [table_of_numbers([f"operator, own time {where}", "share"], _shares(line["operators"]))]
    if line["kernels"]:
        tables.append(table_of_numbers(["kernel", "share"], _shares(line["kernels"])))
    return "\n\n".join([head, *tables])


def _shares(found: list[list[Any]]) -> list[list[str]]:
    return [[f"`{name}`".replace("|", "\\|"), f"{share:.1%}"] for name, share in found]


def _name(line: dict[str, Any]) -> str:
    return f"{line['unit']}{', checkpointed, reuse_forward' if line['checkpointed'] else ''}"


def _spread(values: list[float] | None, places: int) -> str:
    if values is None:
        return "-"
    middle, least, most = (f"{value:.{places}f}" for value in values)
    return middle if least == most else f"{middle} ({least} to {most})"


def _range(gauges: list[dict[str, float]], name: str) -> str:
    values = [gauge[name] for gauge in gauges]
    if not values:
        return "-"
    return f"{min(values):.0f} to {max(values):.0f}" if min(values) < max(values) else f"{values[0]:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="fast.jsonl")
    print(write_section(read_lines(parser.parse_args().path)))


if __name__ == "__main__":
    main()
