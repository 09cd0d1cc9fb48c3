"""Settings of a mixture that are refused."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest

from colm.errors import ConfigError
from colm.lab.run.settings import resolve_settings


def resolve(**data: Any) -> Any:
    return resolve_settings({"model": "tiny", "output_dir": "x", "data": {"train": "a.jsonl", **data}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"weights": [1, 2]}, r"data.weights is \[1, 2\]; it must be a mapping"),
        ({"weights": {"a": -1}}, "data.weights.a=-1 must be a number of at least 0"),
        ({"weights": {"a": float("inf")}}, "data.weights.a=inf must be"),
        ({"cap": 0}, "data.cap=0 must be a whole number of at least 1"),
        ({"cap": {"a": 2.5}}, "data.cap.a=2.5 must be a whole number"),
        ({"validation_rows": {"a": -1}}, "data.validation_rows.a=-1 must be a whole number of at least 0"),
        ({"template": {"prompt": 3}}, "data.template.prompt is 3; it must be a string"),
        ({"labels": {"label": "yes"}}, "data.labels.label is 'yes'; it must be a list or a mapping"),
        ({"window": 0, "streaming": True}, "data.window=0 must be a whole number of at least 1"),
        ({"streaming": "maybe"}, "data.streaming='maybe' must be true or false"),
        ({"streaming": True, "cap": 5}, "data.cap needs counted rows"),
        ({"streaming": True, "train": "demo"}, "not the demo; set it to false"),
        ({"source_sizes": {"a": 5}}, "data.source_sizes applies only to streams; leave it out"),
        ({"temperature": 0}, "data.temperature=0 must be a number above 0"),
        ({"temperature": 2, "weights": {"a": 1}}, "data.weights and data.temperature=2 both set"),
        ({"streaming": True, "temperature": 2}, "data.temperature needs the rows of each source"),
        ({"source_sizes": {"a": 0}, "streaming": True}, "data.source_sizes.a=0 must be a whole number of at least 1"),
    ],
)
def test_bad_values_are_refused_with_the_range(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(**data)


def test_good_values_stay() -> None:
    data = resolve(weights={"a": 1, "b": 0.5}, cap={"a": 5}, validation_rows={"a": 2}).data
    assert (data.weights, data.cap, data.validation_rows) == ({"a": 1, "b": 0.5}, {"a": 5}, {"a": 2})


LABELS = [
    ("no", "no"),
    ("007", "007"),
    (0, "0"),
    (-3, "-3"),
    (1.5, "1.5"),
    (True, "true"),
    (date(2024, 1, 5), "2024-01-05"),
]
EMPTY = [None, "", " ", float("nan")]


def found_names(setting: str, label: Any) -> list[Any]:
    """Return how the settings name a source that one of them gives a label for."""
    base: dict[str, Any] = {"model": "tiny", "output_dir": "x", "data": {"train": "a.jsonl"}}
    if setting in ("weights", "cap", "validation_rows"):
        return list(getattr(resolve(**{setting: {label: 5, "b": 6}}).data, setting))
    if setting == "source_sizes":
        return list(getattr(resolve(streaming=True, source_sizes={label: 5, "b": 6}).data, setting))
    if setting == "small_sources":
        return list(resolve_settings({**base, "selection": {"small_sources": [label, "b"]}}).selection.small_sources)
    if setting == "mixture":
        entries = [{"path": "a.jsonl", "source": label}, {"path": "b.jsonl", "source": "b"}]
        return [entry.source for entry in resolve_settings({**base, "data": {}, "mixture": entries}).mixture]
    sources: dict[str, Any] = {"map": {"a": "b"}, "split": {"b": 2}, "merged": "b"}
    if setting == "map":
        sources["map"] = {label: label, "b": "b"}
    elif setting == "split":
        sources["split"] = {label: 2, "b": 3}
    else:
        sources["merged"] = label
    rules = resolve_settings({**base, "sources": sources}).sources
    if setting == "map":
        assert list(rules.map) == list(rules.map.values())
        return list(rules.map)
    return list(rules.split) if setting == "split" else [rules.merged, "b"]


BY_SOURCE = ["weights", "cap", "validation_rows", "source_sizes", "small_sources", "mixture", "map", "split", "merged"]


@pytest.mark.parametrize("setting", BY_SOURCE)
@pytest.mark.parametrize(("label", "name"), LABELS)
def test_a_label_names_a_source_in_every_setting(setting: str, label: Any, name: str) -> None:
    assert found_names(setting, label) == [name, "b"]


@pytest.mark.parametrize("setting", BY_SOURCE)
@pytest.mark.parametrize("label", EMPTY)
def test_an_empty_label_is_refused_in_every_setting(setting: str, label: Any) -> None:
    if label is None and setting in ("mixture", "merged"):
        pytest.skip("null stands for the default")
    with pytest.raises(ConfigError, match=f"{setting}.* names the source"):
        found_names(setting, label)


@pytest.mark.parametrize("setting", ["weights", "cap", "validation_rows", "source_sizes"])
def test_two_keys_that_are_one_source_are_refused(setting: str) -> None:
    values: dict[str, Any] = {setting: {0: 5, "0": 6}, "streaming": setting == "source_sizes"}
    with pytest.raises(ConfigError, match=rf"data.{setting} has the keys 0 and '0', which both name the source '0'"):
        resolve(**values)


def test_a_dotted_key_changes_the_value_of_a_number() -> None:
    values = {"model": "tiny", "output_dir": "x", "data": {"train": "a.jsonl", "cap": {0: 5, "b": 7}}}
    assert resolve_settings(values, ["data.cap.0=9", "data.cap.c=1"]).data.cap == {"0": 9, "b": 7, "c": 1}
