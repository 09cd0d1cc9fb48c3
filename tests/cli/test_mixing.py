"""Settings of a mixture that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from colm.cli.settings import resolve_settings
from colm.errors import ConfigError


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
        ({"template": {"prompt": 3}}, "data.template.prompt is 3; it must be a text"),
        ({"labels": {"label": "yes"}}, "data.labels.label is 'yes'; it must be a list or a mapping"),
        ({"window": 0, "streaming": True}, "data.window=0 must be a whole number of at least 1"),
        ({"streaming": "maybe"}, "data.streaming='maybe' must be true or false"),
        ({"streaming": True, "cap": 5}, "data.cap needs rows that are counted"),
        ({"streaming": True, "train": "demo"}, "not the demo; set it to false"),
        ({"source_sizes": {"a": 5}}, "data.source_sizes are those of a stream; leave them out"),
        ({"source_sizes": {"a": 0}, "streaming": True}, "data.source_sizes.a=0 must be a whole number of at least 1"),
    ],
)
def test_bad_values_are_refused_with_the_range(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(**data)


def test_good_values_stay() -> None:
    data = resolve(weights={"a": 1, "b": 0.5}, cap={"a": 5}, validation_rows={"a": 2}).data
    assert (data["weights"], data["cap"], data["validation_rows"]) == ({"a": 1, "b": 0.5}, {"a": 5}, {"a": 2})
