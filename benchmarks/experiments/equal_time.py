"""Write the page of a comparison at equal counted cost, from its output folder.

    colm compare benchmarks/experiments/time_reasoning.yaml --equal time --rates 1e-3 2e-3 4e-3 --seeds 1 2 \\
        --methods random random+rows=8 control temperature colm matched
    python benchmarks/experiments/equal_time.py reasoning

Needs the output of `prepare.py` for the mixture. Writes docs/results/equal_time_<mixture>.md and .json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from page import RESULTS, show, tabulate_differences
from plan import MIXTURES
from setting import describe_setting

from colm.lab.report.comparison import (
    Method,
    count_cost,
    final_losses,
    find_method,
    loss_differences,
    read_comparison,
)
from colm.lab.report.loss_curves import (
    Reach,
    find_reach,
    find_target,
    macro_loss,
    micro_loss,
)
from colm.lab.run.settings import load_settings
from colm.lab.study.planning import SEARCH, Study
from colm.lab.study.results import figures, write_comparison_json

TITLES = {
    "reasoning": "Equal time on nine reasoning tasks",
    "short": "Equal time on short answers",
    "real": "Equal time on fourteen real sources",
    "lora": "Equal time with LoRA",
}


def tabulate(methods: Sequence[Method], unit: float) -> list[str]:
    """Return the table of final losses, with what each method was given."""
    lines = [
        "| method | rate | steps | cost | seconds | macro | micro | small sources | large sources |",
        "| --- | ---: | ---: | ---: | ---: | --- | --- | --- | --- |",
    ]
    for method in methods:
        cost, losses = count_cost(method), final_losses(method)
        rates = ", ".join(f"{rate:g}" for rate in cost.learning_rates)
        cells = [show(losses[metric]) for metric in ("macro", "micro", "small", "big")]
        counted = "-" if cost.operations is None else f"{cost.operations / unit:.2f}"
        seconds = cost.step_seconds * cost.steps
        lines.append(
            f"| {method.name} | {rates} | {cost.steps:.0f} | {counted} | {seconds:.0f} | {' | '.join(cells)} |"
        )
    return lines


def tabulate_reaches(methods: Sequence[Method], unit: float) -> list[str]:
    """Return the table of costs until the final losses of the best method without a selection pass."""
    best = find_target(methods)
    if best is None:
        return []
    micro = "" if best.micro is None else f", micro {best.micro:.4f}"
    lines = [
        f"## Until the final losses of {best.method} (macro {best.macro:.4f}{micro})",
        "",
        "| method | cost, macro | seconds, macro | cost, micro | seconds, micro |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]

    def cells(reach: Reach | None) -> str:
        if reach is None or reach.operations is None or reach.seconds is None:
            return "not reached | not reached"
        return f"{reach.operations / unit:.2f} | {reach.seconds:.0f}"

    for method in methods:
        macro = find_reach(method, best.macro)
        of_rows = None if best.micro is None else find_reach(method, best.micro, micro_loss)
        lines.append(f"| {method.name} | {cells(macro)} | {cells(of_rows)} |")
    return [*lines, ""]


def tabulate_orders(methods: Sequence[Method]) -> list[str]:
    """Return each method in balanced order minus the same in random order, and when it has that one's final losses."""
    named = {method.name: method for method in methods}
    lines = []
    for name, method in named.items():
        base = named.get(name.replace(",order=balanced", "").replace("+order=balanced", ""))
        if base is None or base is method:
            continue
        found, cost = loss_differences(method, base), count_cost(base).operations
        shares = []
        for metric, loss in (("macro", macro_loss), ("micro", micro_loss)):
            target = final_losses(base)[metric]
            reached = None if target is None else find_reach(method, target.mean, loss).operations
            shares.append("not reached" if reached is None or not cost else f"{reached / cost:.2f}")
        cells = [show(found[metric], sign=True) for metric in ("macro", "micro", "small", "big")]
        seeds = len(set(method.figures) & set(base.figures))
        lines.append(f"| {base.name} | {seeds} | {' | '.join([*cells, *shares])} |")
    if not lines:
        return []
    head = "| method | seeds | macro | micro | small sources | large sources | cost, macro | cost, micro |"
    return [
        "## Balanced order minus random order",
        "",
        "Paired by seed, both at their own rates. *Cost*: until the final loss of the random order, relative to all "
        "that it spends.",
        "",
        head,
        "| --- | ---: | --- | --- | --- | --- | ---: | ---: |",
        *lines,
        "",
    ]


def read_rates(folder: Path) -> dict[str, dict[str, Any]]:
    """Return method -> rate -> its macro loss, of all searches in the folder."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / SEARCH).glob("*/*/seed-*/summary.json")):
        method, rate = path.parts[-4:-2]
        summary = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(method, {})[rate] = {"macro": figures(summary)["macro"]}
    for by_rate in found.values():
        least = min(held["macro"] for held in by_rate.values())
        for held in by_rate.values():
            held["best"] = held["macro"] == least
    return found


def show_rate(found: dict[str, Any], *, at_end: bool) -> str:
    macro = found.get("macro")
    return "-" if macro is None else f"{macro:.4f}{'*' if found['best'] and at_end else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=TITLES)
    name = parser.parse_args().name
    settings_path = Path(__file__).parent / f"time_{name}.yaml"
    settings = load_settings(str(settings_path), [])
    folder, training = settings.output_dir, settings.training
    write_comparison_json(folder, Study(str(settings_path), [], equal="time").operations)
    methods = read_comparison(folder)
    random = find_method(methods, "random")
    assert random is not None
    unit = count_cost(random).operations
    assert unit is not None
    rates = read_rates(folder)
    tried = sorted({float(rate) for by_rate in rates.values() for rate in by_rate})
    seeds = sorted({seed for method in methods for seed in method.figures}, key=int)
    lines = [
        f"# {TITLES[name]}",
        "",
        f"`colm compare benchmarks/experiments/time_{name}.yaml --equal time --rates "
        f"{' '.join(f'{rate:g}' for rate in tried)} --seeds {' '.join(seeds)} --methods ...`; "
        f"{describe_setting(', '.join(seeds))}. Raw figures: "
        f"[equal_time_{name}.json](equal_time_{name}.json).",
        "",
        f"{MIXTURES[name]} Every method may spend what `random` costs in {training['max_steps']} steps of 32 rows, by "
        "counted operations of forward and backward passes, has a schedule that ends at its own end, and the learning "
        "rate of lowest macro loss on seed 0, marked * if it is the smallest or largest that was tried. The count "
        "leaves out padding and optimizer steps, which favors small batches: compare the seconds, too. Losses are "
        "means over held-out rows, and over seeds with 95 % t-intervals. "
        "Seconds come from a shared machine whose load changed between the methods.",
        "",
        *tabulate(methods, unit),
        "",
        *tabulate_reaches(methods, unit),
    ]
    lines += tabulate_orders(methods)
    lines += tabulate_differences(methods, random)
    lines += ["## Macro loss on seed 0, by learning rate", ""]
    lines += [f"| method | {' | '.join(f'{rate:g}' for rate in tried)} |", f"| --- | {'---: | ' * len(tried)}".rstrip()]
    for method in methods:
        held = rates.get(method.name, {})
        own = sorted(map(float, held))
        cells = [show_rate(held.get(f"{rate:g}", {}), at_end=rate in (own[0], own[-1])) for rate in tried]
        lines.append(f"| {method.name} | {' | '.join(cells)} |")
    (RESULTS / f"equal_time_{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    raw = {"compare": json.loads((folder / "compare.json").read_text(encoding="utf-8")), "rates": rates}
    (RESULTS / f"equal_time_{name}.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
