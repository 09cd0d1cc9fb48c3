"""The page of the study: tables and a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

Results = dict[str, Any]


def draw_plot(results: Results, path: Path) -> None:
    """Draw, for each stage, the cosine between the kept rows' and the pool's mean gradient by number of probes."""
    plt.rcParams["svg.hashsalt"] = "colm"
    stages, counts = results["stages"], results["probes"]
    figure, axes = plt.subplots(1, len(stages), figsize=(4.2 * len(stages), 3.6), sharey=True, squeeze=False)
    lines = {
        "random by source": ("random by source", "#888888", ":"),
        "medoids of mean hidden states": ("mean hidden state", "#c07a00", "-."),
        "medoids of the full gradient, l1": ("full gradient", "#444444", "--"),
        "medoids of exact last-V gradients (default)": ("exact last-V gradient", "#0a6b3d", "-"),
    }
    for axis, (stage, held) in zip(axes[0], stages.items(), strict=True):
        for name, (label, colour, style) in lines.items():
            mean, low, high = held["methods"][name]["cosine"]
            axis.axhline(mean, color=colour, linestyle=style, label=label)
            axis.axhspan(low, high, color=colour, alpha=0.08, linewidth=0)
        for kind, colour, shift in (("fixed", "#b3202c", 0.95), ("fresh", "#1f5fa8", 1.05)):
            points = [held["methods"][f"SPSA, {probes} {kind}"]["cosine"] for probes in counts]
            means = [mean for mean, _, _ in points]
            spread = [[mean - low for mean, low, _ in points], [high - mean for mean, _, high in points]]
            at = [probes * shift for probes in counts]
            axis.errorbar(at, means, yerr=spread, color=colour, marker="o", markersize=4, label=f"SPSA, {kind}")
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(probes) for probes in counts])
        axis.set_xlabel("SPSA probes")
        axis.set_title(f"after {stage} steps")
    axes[0][0].set_ylabel("cosine, kept against pool")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.17, 1, 1))
    figure.savefig(path, metadata={"Date": None})


def write_page(results: Results, path: Path) -> None:
    about, stages = results["about"], results["stages"]
    first = next(iter(stages.values()))
    total = sum(about["sizes"].values())
    sources = ", ".join(f"{name} {about['sizes'][name] / total:.0%}" for name in about["big"])
    lines = [
        "# Does the zeroth-order estimate find the right gradient and the right rows?",
        "",
        "`python benchmarks/fidelity/gather.py`, then `python benchmarks/fidelity/study.py`; "
        f"{about['setting']}. Raw figures: [estimators.json](estimators.json).",
        "",
        *_reading(stages, results["probes"]),
        "",
        "![cosine over probes](estimators.svg)",
        "",
        "## Setting",
        "",
        "SmolLM2-135M-Instruct in float32, LoRA of rank 16 on all linear maps, trained by the method itself with exact "
        f"features (pool 32, keep 16, AdamW, learning rate 5e-4) on the large sources of {about['data']} ({sources} of "
        f"its rows; rows of at most 160 tokens). After {', '.join(stages)} steps, the same pools of {first['rows']} "
        "rows that training does not reach; half of each is kept, in proportion to the sources. One training run, "
        "one seed: the intervals say nothing about other runs.",
        "",
        "Judged by the cosine and the relative error between the kept rows' and the pool's mean gradient, over all "
        "LoRA weights. Each estimator normalizes with the Adam history of its own picks, replayed over the training "
        f"steps; SPSA is repeated with {results['draws']} draws of directions. *Effective rows*: the number of "
        "random rows of the pool with the same mean cosine. *Agreement*: the share of picks that exact features also "
        "pick (half by chance). *Gradient*: the mean cosine between a row's estimated and exact gradient. "
        "Intervals: 95 %, bootstrap over pools and draws. SPSA rows use projections of the exact gradient, the limit "
        "of a small difference; the last table shows true differences.",
    ]
    for stage, held in stages.items():
        gradients = held["gradients"]
        lines += [
            "",
            f"## After {stage} steps ({held['pools']} pools)",
            "",
            "| selection | cosine | over random by source | relative error | agreement | gradient | effective rows |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        lines += [f"| {name} | {_cells(figures)} |" for name, figures in held["methods"].items()]
        lines += [
            "",
            f"The larger half of a pool's full gradients has {gradients['half']:.0%} of the summed squared norms; the "
            f"logs of full and last-V norms correlate at {gradients['correlation']:.2f}; two rows' full gradients have "
            f"a mean cosine of {gradients['angle']:.2f}. Relative error of the batched full gradients against a "
            f"row's own backward: at most {held['backward_error']:.0e}; of the selection pass against their last-V "
            f"part: {held['pass_error']:.0e}{'' if held['pass_error'] else ', equal to the bit'}.",
        ]
    lines += [
        "",
        "## True differences against projections",
        "",
        "Four directions, the first pool of each stage, no history. Errors and correlations are over rows and "
        "directions; agreement is that of the picks.",
        "",
        "| steps | eps | relative error | correlation | agreement of picks |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {stage} | {row['eps']:.0e} | {row['error']:.1e} | {row['correlation']:.5f} | {row['agreement']:.2f} |"
        for stage, held in stages.items()
        for row in held["differences"]
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cells(figures: Results) -> str:
    def cell(name: str, digits: int, *, sign: str = "") -> str:
        mean, low, high = figures[name]
        if mean != mean:
            return "-"
        return f"{mean:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"

    gradient = figures["gradient"][0]
    return " | ".join(
        [
            cell("cosine", 3),
            cell("over_random_by_source", 3, sign="+"),
            cell("error", 2),
            f"{figures['agreement'][0]:.2f}",
            "-" if gradient != gradient else f"{gradient:.2f}",
            cell("effective_rows", 1),
        ]
    )


def _reading(stages: Results, counts: list[int]) -> list[str]:
    """State the findings of the tables in words, with their numbers."""

    def by_stage(name: str, figure: str, digits: int) -> str:
        return ", ".join(f"{held['methods'][name][figure][0]:.{digits}f}" for held in stages.values())

    steps = ", ".join(stages)
    kept = next(iter(stages.values()))["rows"] // 2
    gradient = {n: next(iter(stages.values()))["methods"][f"SPSA, {n} fresh"]["gradient"][0] for n in counts}
    worst = max(row["error"] for held in stages.values() for row in held["differences"] if row["eps"] == 1e-3)
    exact, full = "medoids of exact last-V gradients (default)", "medoids of the full gradient, l1"
    names = {
        "random by source": "random by source",
        "medoids of mean hidden states": "mean hidden states",
        "SPSA, 1 fixed": "SPSA with one fixed probe (as in the official code)",
        "SPSA, 1 fresh": "with one fresh probe",
        "SPSA, 16 fresh": "with 16",
        "SPSA, 64 fresh": "with 64",
        exact: "exact last-V gradients",
        full: "the full gradient",
    }
    rows = "; ".join(f"{label} {by_stage(name, 'effective_rows', 1)}" for name, label in names.items())
    return [
        "- **As an estimate of a row's gradient, one probe is nearly worthless**: its mean cosine with the exact one "
        f"is {gradient[1]:.3f}; with 4, 16 and 64 probes {gradient[4]:.2f}, {gradient[16]:.2f} and {gradient[64]:.2f}. "
        "True differences agree with projections of the exact gradient (relative error at most "
        f"{worst:.0e} at eps 1e-3), so the error comes from using few directions, not from the difference.",
        f"- **The cost to the selection**, as the number of random rows with the cosine of the {kept} kept ones, after "
        f"{steps} steps: {rows}.",
        f"- **The gain is in direction only.** The relative error of the mean gradient equals that of random by source "
        f"({by_stage('random by source', 'error', 2)}) for every feature, exact "
        f"({by_stage(exact, 'error', 2)}) or full ({by_stage(full, 'error', 2)}): medoids favor rows with long "
        "gradients, which carry most of the pool's direction and make the mean too long. Simply taking the longest "
        f"last-V gradients gives the cosine of {by_stage('largest last-V gradient norm', 'effective_rows', 1)} rows.",
        f"- **Adam normalization does not help this cosine**: without it, exact features reach "
        f"{by_stage('medoids of exact last-V gradients, no Adam', 'effective_rows', 1)}. The cosine is of gradients, "
        "not of Adam's steps, so this is not conclusive. Before the first step there is no history, and the normalized "
        "gradient is only its signs.",
    ]
