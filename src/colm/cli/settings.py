"""A run's configuration: a YAML file with overrides, checked key by key."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from colm.cli.clustering import read_rules
from colm.cli.mixing import MIXING_DEFAULTS, check_mixing, name_entries
from colm.cluster.relabel import SourceRules, rules_to_dict
from colm.config import SelectionConfig
from colm.errors import ConfigError, suggest
from colm.sources import source_name

DATA_DEFAULTS: dict[str, Any] = {
    "train": None,  # file, hub name, or 'demo'
    "config": None,  # of a hub data set
    "split": "train",
    "validation": None,  # file or hub name
    "validation_split": "validation",
    "validation_rows": 0,  # rows of each source to hold out where there is no validation data, or source -> rows
    "source_column": "source",
    "format": "auto",
    "columns": {},  # colm's column name -> the data's
    "max_length": 512,  # tokens
    "demo_rows": 1500,
    "seed": None,  # of the held-out rows and of the demo's tasks; default the run's
    **MIXING_DEFAULTS,
}

TOP_DEFAULTS: dict[str, Any] = {
    "model": None,
    "dtype": "auto",
    "lora": None,  # fields of peft.LoraConfig, or null for full fine-tuning
    "data": DATA_DEFAULTS,
    "mixture": [],
    "sources": {},  # clusters in the place of labels, sources split, merged and renamed
    "selection": {},
    "training": {},  # fields of transformers.TrainingArguments
    "output_dir": None,
    "seed": 0,
}

TRAINING_DEFAULTS: dict[str, Any] = {"report_to": "none", "logging_steps": 10, "remove_unused_columns": True}

OWNED = ("output_dir", "seed")
"""Training arguments that have one place of their own in the file."""


class RunSettings(NamedTuple):
    """A resolved configuration; `values` is what `config.yaml` of the output folder holds."""

    model: str
    dtype: str
    lora: dict[str, Any] | None
    data: dict[str, Any]
    mixture: list[dict[str, Any]]
    sources: SourceRules
    selection: SelectionConfig
    training: dict[str, Any]
    output_dir: Path
    seed: int
    values: dict[str, Any]


def load_settings(path: str, overrides: Sequence[str]) -> RunSettings:
    """Read, override and check a configuration.

    Args:
        path: a YAML file.
        overrides: ``key=value``, keys dotted, values in YAML: ``training.max_steps=20``.

    Raises:
        ConfigError: the file is missing or no mapping, a key is unknown (with the nearest one), a value
            has the wrong kind or is out of range.
    """
    if not Path(path).is_file():
        raise ConfigError(f"There is no configuration file {path!r}.")
    try:
        values = _read_yaml(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; it must be a mapping of settings.")
    return resolve_settings(values, overrides)


def resolve_settings(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunSettings:
    """Override, fill in defaults and check every key. Raises as `load_settings`."""
    given = copy.deepcopy(dict(values))
    for override in overrides:
        _apply(given, override)
    _check_keys(given, TOP_DEFAULTS, "")
    merged = {**copy.deepcopy(TOP_DEFAULTS), **given}
    for name in ("data", "selection", "training"):
        if not isinstance(merged[name] or {}, dict):
            raise ConfigError(f"{name} is {merged[name]!r}; it must be a mapping of settings.")
    merged["data"] = _data(merged["data"] or {})
    merged["mixture"] = _mixture(merged["mixture"] or [], merged["data"])
    merged["training"] = _training(merged["training"] or {})
    merged["lora"] = _lora(merged["lora"])
    selection = SelectionConfig.from_dict({"seed": merged["seed"], **(merged["selection"] or {})})
    merged["selection"] = selection.to_dict()
    for name in ("model", "output_dir"):
        if not merged[name] or not isinstance(merged[name], str):
            raise ConfigError(f"{name} is {merged[name]!r}; it must be set to a text.")
    if not isinstance(merged["seed"], int) or merged["seed"] < 0:
        raise ConfigError(f"seed={merged['seed']!r} must be a whole number of at least 0.")
    seed = merged["seed"] if merged["data"]["seed"] is None else merged["data"]["seed"]
    rules = read_rules(merged["sources"], merged["data"], seed)
    merged["sources"] = rules_to_dict(rules)
    return RunSettings(
        model=merged["model"],
        dtype=merged["dtype"],
        lora=merged["lora"],
        data=merged["data"],
        mixture=merged["mixture"],
        sources=rules,
        selection=selection,
        training=merged["training"],
        output_dir=Path(merged["output_dir"]),
        seed=merged["seed"],
        values=merged,
    )


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 2e-5 is one, which PyYAML takes for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no override; write key=value, such as selection.keep=0.25.")
    *parents, leaf = key.split(".")
    place = values
    for parent in parents:
        parent = _find_key(place, parent)
        inner = place.setdefault(parent, {})
        if inner is None:
            inner = place[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r} can not be set: {parent} is {inner!r}, no mapping.")
        place = inner
    try:
        place[_find_key(place, leaf)] = _read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not valid YAML ({error}).") from error


def _find_key(place: Mapping[Any, Any], name: str) -> Any:
    """Return the key of a mapping that a part of a dotted key names: ``data.cap.0`` is that of the source 0."""
    return next((key for key in place if source_name(key) == name), name)


def _check_keys(values: Mapping[str, Any], known: Mapping[str, Any] | Sequence[str], section: str) -> None:
    for key in values:
        if key not in known:
            where = f" in {section}" if section else ""
            raise ConfigError(
                f"Unknown setting {key!r}{where}.{suggest(str(key), known)} "
                f"Known: {', '.join(sorted(known)) if len(known) < 20 else 'see the documentation'}."
            )


def _data(values: dict[str, Any]) -> dict[str, Any]:
    _check_keys(values, DATA_DEFAULTS, "data")
    merged = {**DATA_DEFAULTS, **values}
    for key, least in (("max_length", 2), ("demo_rows", 100)):
        if not isinstance(merged[key], int) or isinstance(merged[key], bool) or merged[key] < least:
            raise ConfigError(f"data.{key}={merged[key]!r} must be a whole number of at least {least}.")
    if merged["seed"] is not None and (not isinstance(merged["seed"], int) or merged["seed"] < 0):
        raise ConfigError(f"data.seed={merged['seed']!r} must be a whole number of at least 0.")
    if not isinstance(merged["columns"], dict):
        raise ConfigError(f"data.columns is {merged['columns']!r}; it must map colm's column names to the data's.")
    check_mixing(merged)
    return merged


def _mixture(values: Any, data: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(entry, dict) for entry in values):
        raise ConfigError(f"mixture is {values!r}; it must be a list of entries such as {{path: a.jsonl, source: a}}.")
    if values and data["train"]:
        raise ConfigError(
            "Both data.train and mixture are set; list every file under mixture, or use data.train alone."
        )
    return name_entries(values)


def _training(values: dict[str, Any]) -> dict[str, Any]:
    from transformers import TrainingArguments

    known = [f.name for f in fields(TrainingArguments) if f.init]
    _check_keys(values, known, "training (the fields of transformers.TrainingArguments)")
    for key in OWNED:
        if key in values:
            raise ConfigError(f"training.{key} is set; move {key} to the top of the file, where colm reads it too.")
    # YAML reads a bare no as false, where the Trainer's strategies know "no".
    values = {key: "no" if key.endswith("_strategy") and value is False else value for key, value in values.items()}
    import torch

    # Pinning memory without an accelerator only warns; without use_cpu each of several processes trains for itself.
    machine = {"dataloader_pin_memory": torch.cuda.is_available(), "use_cpu": not torch.accelerator.is_available()}
    return {**machine, **TRAINING_DEFAULTS, **values}


def _lora(values: Any) -> dict[str, Any] | None:
    if values is None or values is False:
        return None
    if not isinstance(values, dict):
        raise ConfigError(f"lora is {values!r}; it must be a mapping of LoraConfig fields, or null for full training.")
    from peft import LoraConfig

    _check_keys(values, [f.name for f in fields(LoraConfig) if f.init], "lora (the fields of peft.LoraConfig)")
    return {"target_modules": "all-linear", **values}
