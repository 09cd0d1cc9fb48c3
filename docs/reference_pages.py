"""Writes the reference pages from the code: settings, commands, files of a run, and logged metrics."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import LoraConfig
from transformers import TrainingArguments

from colm.config import PRESETS, SelectionConfig
from colm.hints import hints_of
from colm.lab.cli import main
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.lab.run import arguments, training
from colm.lab.run.schema import describe_fields, plain_defaults
from colm.lab.run.sections import TopSettings
from colm.lab.sources.config import ClusterConfig, SourceRules
from colm.step import record
from colm.trainers.figures import SelectionFigures
from colm.typed import describe
from colm.types import NoiseScale, StepRecord

FILES = {
    "FILE_NAME": "One line for each optimizer step: rows of the pool and kept rows by source, their weights, tokens, "
    "seconds, how well the kept rows match the pool, and the noise scale where it was measured. `colm replay` trains "
    "on it again.",
    "EVALUATIONS_NAME": "One line for each evaluation: the loss of each source and the means.",
    "LOSSES_NAME": "One line for each log of the Trainer: the mean training loss since the line before.",
    "CONFIG_NAME": "The resolved configuration, with all defaults.",
    "DATA_NAME": "Number and digest of the training and held-out rows, and of a local model's files; a resume and a "
    "comparison compare them.",
    "HELD_OUT_NAME": "The rows that the run held out, as text. `colm eval` asks them.",
    "SUMMARY_NAME": "Written at the end: sources, small sources, losses before and after, seconds, peak memory, "
    "dropped rows.",
    "EXAMPLES_NAME": "The rows most and least often kept.",
    "COMPARE_NAME": "The results of a comparison by method and seed, in the comparison's folder.",
    "RATES_NAME": "Each method's final macro loss by learning rate, and the best rate, of `colm compare --rates`.",
    "ANSWERS_NAME": "Figures of `colm eval`: exact match by source, with intervals.",
    "ANSWER_LINES_NAME": "Each question with its answer and judgment.",
    "HARNESS_NAME": "Results of `colm eval --tasks`.",
    "PARTIAL_ANSWERS_NAME": "Answers of an unfinished evaluation, which resumes from them.",
    "PROFILE_NAME": "Time by stage and operation (`colm train --profile`).",
    "TRACE_NAME": "The trace of these steps, for a viewer such as Perfetto.",
    "MANIFEST_NAME": "The files that colm wrote, with size and digest. `--overwrite` replaces only these.",
}
"""What each file name in `colm.step.record` holds."""

OTHER_FILES = {
    "model.safetensors, adapter_model.safetensors, tokenizer": "The model or adapter, with its configuration and "
    "tokenizer, loadable by transformers and PEFT.",
    "checkpoint-N/": "The Trainer's checkpoint after step N, with the selector's state. `coreset_complete.json`, "
    "written last, lists its files and sizes.",
    "README.md": "The model card: data, losses by source, settings, citations. A page that colm did not write stays.",
    "logs/": "TensorBoard's files (`training.report_to=tensorboard`).",
    "labels.parquet, labels.centroids.npz": "The clusters of the rows (`sources.cluster`).",
    "report.html, compare.html, sources.html, probe.html": "Pages of `colm report`, `compare`, `sources` and `probe`.",
    "_training.lock": "Locked while a process trains in the folder.",
}

METRICS = {
    "coreset_pool": "Rows in a pool, all ranks together.",
    "coreset_kept": "Rows trained on in a step.",
    "coreset_small_kept": "Kept rows of small sources.",
    "coreset_nonfinite": "Rows without finite features since the last log.",
    "selection_seconds": "Seconds of a step that selection takes.",
    "selection_share": "Share of a step's time that selection takes.",
    "coreset_match": "Cosine between the mean feature of the kept rows and of the pool.",
    "coreset_match_random": "The same for as many random rows.",
    "noise_scale": "Rows at which a step's gradient is as much signal as noise, after a measurement "
    "(`selection.noise_every`); left out while it is not clear.",
    "pool/SOURCE": "Rows of the source in a pool.",
    "kept/SOURCE": "Kept rows of the source in a step.",
    "tokens/SOURCE": "Labeled tokens of the source in a step.",
    "share/SOURCE": "The source's share of all rows trained on so far.",
    "token_share/SOURCE": "The source's share of all labeled tokens trained on so far.",
    "loss/SOURCE": "Mean training loss of the source's kept rows.",
    "noise_scale/SOURCE": "The same as `noise_scale`, of the source's rows.",
}
"""The keys that `SelectionFigures.take_log` returns."""

EVAL_METRICS = {
    "eval_loss": "Mean over held-out examples.",
    "eval_macro_loss": "Mean over sources.",
    "eval_loss/SOURCE": "Mean over the source's held-out examples.",
}


def write(folder: Path) -> None:
    """Write the generated pages into a folder."""
    folder.mkdir(exist_ok=True)
    pages = {
        "settings.md": settings_page(),
        "commands.md": commands_page(),
        "files.md": files_page(),
        "metrics.md": metrics_page(),
    }
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:  # Sphinx reads only pages that changed
            path.write_text(text)


def settings_page() -> str:
    """Return the page of all YAML keys: type, range, default, meaning."""
    presets = "; ".join(
        f"`{name}`: {', '.join(f'{key}={value}' for key, value in preset.items())}" for name, preset in PRESETS.items()
    )
    lines = ["# Settings", "", "Every key of a configuration, written from the code. A dotted key on the command"]
    lines += ["line overrides the file: `selection.keep=0.25`. See also the [guide](../guides/configuration.md).", ""]
    kinds = {**dict.fromkeys(("data", "selection", "sources", "training"), "a mapping"), "lora": "a mapping or null"}
    lines += ["## Top level", "", *table_of(TopSettings, kinds | {"mixture": "a list of mappings"})]
    lines += ["## data", "", *table_of(DataSettings)]
    lines += ["## mixture", "", "A list of entries with these keys; keys left out are taken from `data`.", ""]
    lines += table_of(MixtureEntry)
    lines += ["## sources", "", *table_of(SourceRules), "### sources.cluster", "", *table_of(ClusterConfig)]
    lines += ["## selection", "", f"`preset` stands for a set of values that the other keys change. {presets}.", ""]
    lines += table_of(SelectionConfig, defaults={"keep": 0.5})
    lines += [
        "## training",
        "",
        "Fields of `transformers.TrainingArguments`, with these types, ranges and defaults; what",
    ]
    lines += ["they mean is in the documentation of transformers. `output_dir` and `seed` are at the top level.", ""]
    known = {name: hint for name, hint in arguments.training_hints().items() if name not in arguments.OWNED}
    elsewhere = {name: f"Refused: {why}." for name, why in training.ELSEWHERE.items()}
    lines += table(known, plain_defaults(TrainingArguments) | arguments.TRAINING_DEFAULTS, elsewhere)
    lines += ["## lora", "", "Fields of `peft.LoraConfig`; what they mean is in the documentation of PEFT.", ""]
    lines += table(arguments.lora_hints(), plain_defaults(LoraConfig) | arguments.LORA_DEFAULTS, {})
    return "\n".join(lines)


def table_of(
    settings: type, kinds: Mapping[str, str] | None = None, defaults: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Yield the table of a dataclass's settings; `kinds` and `defaults` replace what its hints and fields say."""
    known = plain_defaults(settings) | dict(defaults or {})
    return table(hints_of(settings), known, describe_fields(settings), kinds)


def commands_page() -> str:
    """Return the page of all commands, each with its own help text."""
    texts = {name: help_of(name) for name in commands()}
    lines = ["# Commands", "", "`python -m colm` is the same as `colm`. Exit status: 0; 2 after an error that you can"]
    lines += ["correct; 130, 143 and 141 after Ctrl-C, SIGTERM and a closed pipe.", "", *code(help_of())]
    for name, text in texts.items():
        lines += [f"## colm {name}", "", *code(text)]
    return "\n".join(lines)


def files_page() -> str:
    """Return the page of all files that a run or an evaluation writes."""
    named = [(getattr(record, constant), text) for constant, text in FILES.items()]
    lines = ["# Files", "", "What colm writes to an output folder.", "", "| file | content |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{name}` | {text} |" for name, text in [*named, *OTHER_FILES.items()]), ""])


def metrics_page() -> str:
    """Return the page of all logged metrics."""
    lines = ["# Metrics", "", "Logged through the Trainer every `training.logging_steps`, so they reach its loggers."]
    lines += [""]
    for title, names in (("In training", METRICS), ("In evaluation", EVAL_METRICS)):
        lines += [f"## {title}", "", "| metric | meaning |", "| --- | --- |"]
        lines += [*(f"| `{name}` | {text} |" for name, text in names.items()), ""]
    return "\n".join([*lines, "Metrics by source are left out with `selection.log_sources: false`.", ""])


def logged() -> set[str]:
    """Return the keys that training logs for a source named SOURCE."""
    figures = SelectionFigures(["SOURCE"], by_source=True)
    known: dict[str, Any] = {"pool": {"SOURCE": [0, 1]}, "kept": {"SOURCE": [0]}, "tokens": {"SOURCE": 3}}
    known |= {"match": 0.5, "match_random": 0.4, "noise": NoiseScale(2, 8.0, {"SOURCE": 4.0})}
    figures.add_step(StepRecord(**{**dict.fromkeys(StepRecord._fields, 0), **known}))
    figures.add_losses(torch.tensor([1.0]), torch.tensor([0]))
    return set(figures.take_log())


def commands() -> list[str]:
    """Return the names of the subcommands, as the help lists them."""
    return re.findall(r"^    ([a-z]+)\b", help_of(), flags=re.MULTILINE)


def help_of(*command: str) -> str:
    """Return a command's help text, 100 columns wide."""
    out = io.StringIO()
    with patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}), redirect_stdout(out), suppress(SystemExit):
        main([*command, "--help"])
    return out.getvalue()


def table(
    hints: Mapping[str, Any],
    defaults: Mapping[str, Any],
    meanings: Mapping[str, str],
    kinds: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Yield a table of settings; `kinds` replaces what the type hint says."""
    yield from ("| key | value | default | meaning |", "| --- | --- | --- | --- |")
    for name, hint in hints.items():
        kind = (kinds or {}).get(name) or ("any value" if hint is Any else describe(hint))
        shown = defaults.get(name, MISSING)
        default = "required" if shown is MISSING else f"`{json.dumps(shown, default=str)}`"
        meaning = meanings.get(name, "")
        cells = (f"`{name}`", kind, default, meaning[:1].upper() + meaning[1:])
        yield "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |"
    yield ""


def code(text: str) -> list[str]:
    """Return a text as a block that is shown as it is."""
    return ["```text", text.rstrip(), "```", ""]
