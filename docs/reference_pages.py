"""Writes the reference pages from the code: settings, commands, files of a run, and logged metrics."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, fields
from inspect import getdoc, getsource
from pathlib import Path
from textwrap import dedent
from typing import Any
from unittest.mock import patch

import torch
from peft import LoraConfig
from transformers import TrainingArguments

from colm.config import PRESETS, SelectionConfig
from colm.config_checks import COUNTS, OPTIONAL_COUNTS
from colm.lab.cli import main
from colm.lab.run import sections, training
from colm.lab.run.clustering import KNOWN
from colm.lab.run.settings import resolve_settings
from colm.lab.sources.config import ClusterConfig
from colm.step import record
from colm.trainers.figures import SelectionFigures
from colm.typed import describe, hints_of
from colm.types import StepRecord

FILES = {
    "FILE_NAME": "One line for each optimizer step: rows of the pool and kept rows by source, their weights, tokens, "
    "seconds, and how well the kept rows match the pool. `colm replay` trains on it again.",
    "EVALUATIONS_NAME": "One line for each evaluation: the loss of each source and the means.",
    "CONFIG_NAME": "The resolved configuration, with all defaults.",
    "DATA_NAME": "Number and digest of the training and held-out rows; a resume and a comparison compare them.",
    "HELD_OUT_NAME": "The rows that the run held out, as text. `colm eval` asks them.",
    "SUMMARY_NAME": "Written at the end: sources, small sources, losses before and after, seconds, peak memory, "
    "dropped rows.",
    "EXAMPLES_NAME": "The rows most and least often kept.",
    "COMPARE_NAME": "The results of a comparison by method and seed, in the comparison's folder.",
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
    "report.html, compare.html, sources.html": "Pages of `colm report`, `colm compare` and `colm sources`.",
    "_training.lock": "Locked while a process trains in the folder.",
}

METRICS = {
    "coreset_pool": "Rows in a pool, all ranks together.",
    "coreset_kept": "Rows trained on in a step.",
    "coreset_small_kept": "Kept rows of small sources.",
    "coreset_nonfinite": "Rows without finite features since the last log.",
    "selection_seconds": "Seconds of selection in a step.",
    "selection_share": "Share of a step's time that selection takes.",
    "coreset_match": "Cosine between the mean feature of the kept rows and of the pool.",
    "coreset_match_random": "The same for as many random rows.",
    "pool/SOURCE": "Rows of the source in a pool.",
    "kept/SOURCE": "Kept rows of the source in a step.",
    "tokens/SOURCE": "Labeled tokens of the source in a step.",
    "share/SOURCE": "The source's share of all rows trained on so far.",
    "token_share/SOURCE": "The source's share of all labeled tokens trained on so far.",
    "loss/SOURCE": "Mean training loss of the source's kept rows.",
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
    data, entry = MEANINGS | descriptions(sections.DataSettings), MEANINGS | descriptions(sections.MixtureEntry)
    clusters = descriptions(ClusterConfig)
    selection = descriptions(SelectionConfig)
    chosen = {**hints_of(SelectionConfig)}
    least = {name: f"a whole number of at least {value}" for name, value in {**COUNTS, **OPTIONAL_COUNTS}.items()}
    top = {"model": "Hub name, folder, `.gguf` file, a run's folder, `demo` or `tiny`."}
    top |= {name: f"A section, see [below](#{name})." for name in ("data", "mixture", "sources", "selection")}
    top |= {"lora": "Fields of [lora](#lora), or null to train all weights.", "training": "See [below](#training)."}
    top |= {"output_dir": "The run's folder.", "seed": "Seed of the run; other seeds default to it."}
    top |= {"dtype": "Precision of the model's weights; `auto` is that of the file."}
    kinds = {**dict.fromkeys(("data", "selection", "sources", "training"), "a mapping"), "mixture": "a list"}
    defaults = {field.name: default_of(field) for field in fields(sections.TopSettings)}
    lines = ["# Settings", "", "Every key of a configuration, written from the code. A dotted key on the command"]
    lines += ["line overrides the file: `selection.keep=0.25`. See also the [guide](../guides/configuration.md).", ""]
    hints = hints_of(sections.TopSettings)
    lines += ["## Top level", "", *table(hints, defaults, top, kinds | {"lora": "a mapping or null"})]
    defaults = {field.name: default_of(field) for field in fields(sections.DataSettings)}
    lines += ["## data", "", *table(sections.DATA_HINTS, defaults, data)]
    lines += ["## mixture", "", "A list of entries with these keys; keys left out are taken from `data`.", ""]
    defaults = {field.name: default_of(field) for field in fields(sections.MixtureEntry)}
    lines += table(hints_of(sections.MixtureEntry), defaults, entry)
    rules = resolve_settings({"model": "tiny", "output_dir": "x", "data": {"train": "x.jsonl"}}).values["sources"]
    lines += ["## sources", "", *table(dict.fromkeys(KNOWN, Any), rules, SOURCES, SOURCE_KINDS)]
    lines += ["### sources.cluster", ""]
    defaults = {field.name: default_of(field) for field in fields(ClusterConfig)}
    whole = dict.fromkeys(("dimensions", "terms", "restarts"), "a whole number of at least 1")
    whole |= {"sample": "a whole number of at least 100", "seed": "a whole number of at least 0"}
    whole |= {"clusters": "a whole number of at least 2, `auto`, or `{least: 2, most: 64}`"}
    lines += table(hints_of(ClusterConfig), defaults, clusters, whole)
    values = {name: ", ".join(f"{key}={value}" for key, value in preset.items()) for name, preset in PRESETS.items()}
    presets = "; ".join(f"`{name}`: {text}" for name, text in values.items())
    lines += ["## selection", "", f"`preset` stands for a set of values that the other keys change. {presets}.", ""]
    defaults = {field.name: default_of(field) for field in fields(SelectionConfig)} | {"keep": 0.5}
    lines += table(chosen, defaults, selection, least)
    lines += [
        "## training",
        "",
        "Fields of `transformers.TrainingArguments`, with these types, ranges and defaults; what",
    ]
    lines += ["they mean is in the documentation of transformers. `output_dir` and `seed` are at the top level.", ""]
    known = {name: hint for name, hint in training.training_hints().items() if name not in training.OWNED}
    elsewhere = {name: f"Refused: {why}." for name, why in training.ELSEWHERE.items()}
    defaults = {field.name: default_of(field) for field in fields(TrainingArguments)} | training.TRAINING_DEFAULTS
    lines += table(known, defaults, elsewhere)
    lines += ["## lora", "", "Fields of `peft.LoraConfig`; what they mean is in the documentation of PEFT.", ""]
    defaults = {field.name: default_of(field) for field in fields(LoraConfig)} | {"target_modules": "all-linear"}
    lines += table({**hints_of(LoraConfig), **training.LORA_RANGES}, defaults, {})
    return "\n".join(lines)


MEANINGS = {
    "split": "Split of a hub data set or of a folder: `train[:10%]`, `train+test`, `all`.",
    "validation_split": "The same for `validation`.",
    "source_column": "Column with each row's source.",
    "format": "Format of the rows; `auto` recognizes it by the columns.",
    "demo_rows": "Rows that the demo generates.",
    "path": "A file or hub name.",
    "config": "Configuration of a hub data set.",
    "revision": "Revision of a hub data set.",
    "columns": "colm's column name to the data's.",
    "template": "New column to a text with columns in braces.",
    "labels": "Column to the texts that its values stand for.",
}
"""For keys on which the code has no comment."""

SOURCES = {
    "cluster": "Cluster all rows and use the clusters as sources, whatever their labels.",
    "map": "Old source name to new one.",
    "split": "Source to a clustering within it.",
    "merge_below": "Sources with fewer rows become one.",
    "merged": "Name of that one.",
    "labels": "File of the clusters, as `colm sources --cluster` writes it.",
}
SOURCE_KINDS = {
    "cluster": "a number of clusters, or a mapping ([below](#sources-cluster))",
    "map": "a mapping",
    "split": "a mapping of the same",
    "merge_below": "a whole number of at least 0",
    "merged": "a string",
    "labels": "a `.parquet` file",
}


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
    known |= {"match": 0.5, "match_random": 0.4}
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


def descriptions(cls: type) -> dict[str, str]:
    """Return what the code says about each field: a docstring below it, an `Attributes:` entry, or a comment."""
    source = dedent(getsource(cls))
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    alone = {at for at, token in comments.items() if token.line.strip().startswith("#")}
    found = dict(re.findall(r"^ {4}(\w+): ((?:.|\n {8})*)", getdoc(cls) or "", flags=re.MULTILINE))
    for node, after in zip(body.body, [*body.body[1:], None], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        above = node.lineno - 1
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[node.target.id] = str(after.value.value)
        elif node.end_lineno in comments:
            found[node.target.id] = comments[node.end_lineno].string.lstrip("# ")
        elif above in alone:
            found[node.target.id] = comments[above].string.lstrip("# ")
    return {name: " ".join(text.replace("``", "`").split()) for name, text in found.items()}


def table(
    hints: Mapping[str, Any],
    defaults: Mapping[str, Any],
    meanings: Mapping[str, str],
    kinds: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Yield a table of settings; `kinds` replaces what the type hint says."""
    yield from ("| key | value | default | |", "| --- | --- | --- | --- |")
    for name, hint in hints.items():
        kind = (kinds or {}).get(name) or ("any value" if hint is Any else describe(hint))
        shown = defaults.get(name, MISSING)
        default = "required" if shown is MISSING else f"`{json.dumps(shown, default=str)}`"
        meaning = meanings.get(name, "")
        cells = (f"`{name}`", kind, default, meaning[:1].upper() + meaning[1:])
        yield "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in cells) + " |"
    yield ""


def default_of(field: Any) -> Any:
    """Return a dataclass field's default; MISSING if it must be set."""
    made = field.default if field.default_factory is MISSING else field.default_factory()
    return getattr(made, "value", made)


def code(text: str) -> list[str]:
    """Return a text as a block that is shown as it is."""
    return ["```text", text.rstrip(), "```", ""]
