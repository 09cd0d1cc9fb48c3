"""A run's configuration: a YAML file with overrides, checked key by key."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from colm.config import SelectionConfig
from colm.errors import ConfigError
from colm.lab.run.clustering import read_rules
from colm.lab.run.mixing import check_mixing, name_entries
from colm.lab.run.sections import DATA_HINTS, DataSettings, MixtureEntry, TopSettings
from colm.lab.run.training_fields import check_early
from colm.lab.run.yaml12 import read_config_file, read_yaml
from colm.lab.sources.config import SourceRules
from colm.step.sources import source_name
from colm.typed import check_keys, hints_of, read_section, show

MODEL_COLUMNS = frozenset(
    (
        *("input_ids", "attention_mask", "labels", "label", "label_ids", "position_ids", "token_type_ids", "length"),
        *("inputs_embeds", "past_key_values", "use_cache", "cache_position", "logits_to_keep", "num_items_in_batch"),
        *("output_attentions", "output_hidden_states", "return_dict", "row_weights"),
    )
)
"""Columns with the names of model or loss arguments, which would receive them."""

DATA_DEFAULTS: dict[str, Any] = asdict(DataSettings())


class RunSettings(NamedTuple):
    """A resolved configuration; `values` is the content of `config.yaml` in the output folder."""

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
        overrides: ``key=value`` with dotted keys and YAML values: ``training.max_steps=20``. The last override of a
            key counts.

    Raises:
        ConfigError: the file is missing or not a mapping, a key is unknown (gives the closest one) or a duplicate, or a
            value has the wrong type or is out of range.
    """
    return resolve_settings(read_config_file(Path(path)), overrides)


def resolve_settings(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunSettings:
    """Override, fill in defaults and check every key. Raises as `load_settings`."""
    given = copy.deepcopy(dict(values))
    for override in overrides:
        _apply(given, override)
    check_keys(given, hints_of(TopSettings))
    for name in ("model", "output_dir"):
        if not given.get(name) or not isinstance(given[name], str):
            raise ConfigError(f"{name} is {show(given.get(name))}; it must be set to a string.")
    merged = {**asdict(TopSettings()), **read_section("", hints_of(TopSettings), given)}
    merged["data"] = _data(merged["data"])
    merged["mixture"] = _mixture(merged["mixture"], merged["data"])
    if not isinstance(merged["selection"] or {}, dict):
        raise ConfigError(f"selection is {show(merged['selection'])}; it must be a mapping of settings.")
    selection = SelectionConfig.from_dict({"seed": merged["seed"], **(merged["selection"] or {})})
    merged["selection"] = selection.to_dict()
    seed = merged["seed"] if merged["data"]["seed"] is None else merged["data"]["seed"]
    rules = read_rules(merged["sources"], merged["data"], seed)
    merged["sources"] = rules.to_dict()
    check_early(merged["training"], merged["lora"])
    # Imports transformers and PEFT, which takes seconds: not for an error that is already known.
    from colm.lab.run.training import read_lora, read_training

    merged["training"] = read_training(merged["training"])
    merged["lora"] = read_lora(merged["lora"])
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


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"Invalid override {override!r}. Use key=value, for example selection.keep=0.25.")
    *parents, leaf = key.split(".")
    place = values
    for parent in parents:
        parent = _find_key(place, parent)
        inner = place.setdefault(parent, {})
        if inner is None:
            inner = place[parent] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r} cannot be set: {parent} is {show(inner)}, not a mapping.")
        place = inner
    try:
        place[_find_key(place, leaf)] = read_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{show(override)}: the value is not valid YAML ({error}).") from error


def _find_key(place: Mapping[Any, Any], name: str) -> Any:
    """Return the mapping key that a part of a dotted key names: ``data.cap.0`` names the source 0."""
    return next((key for key in place if not isinstance(key, tuple) and source_name(key) == name), name)


def _data(values: Any) -> dict[str, Any]:
    merged = {**DATA_DEFAULTS, **read_section("data", DATA_HINTS, values)}
    check_mixing(merged)
    if merged["source_column"] in MODEL_COLUMNS:
        raise ConfigError(
            f"data.source_column={merged['source_column']!r} is the name of a token column or a model argument. "
            f"Rename it: data.columns={{source: {merged['source_column']}}}, and leave data.source_column out."
        )
    return merged


def _mixture(values: Any, data: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not isinstance(values or [], list) or not all(isinstance(entry, dict) for entry in values or []):
        raise ConfigError(
            f"mixture is {show(values)}; it must be a list of entries such as {{path: a.jsonl, source: a}}."
        )
    if values and data["train"]:
        raise ConfigError(
            "Both data.train and mixture are set; list every file under mixture, or use data.train alone."
        )
    hints = hints_of(MixtureEntry)
    for number, entry in enumerate(values or []):
        read_section(f"mixture[{number}]", hints, entry, "in a mixture entry")
    return name_entries(values or [])
