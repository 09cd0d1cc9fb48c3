"""Prompts and completions from other columns."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from colm.errors import ConfigError, DataError
from colm.lab.data.load import read_mixture
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.lab.data.template import fill_template

ROWS = Dataset.from_list([{"sentence": "Fine {film}.", "label": 1, "source": "s", "idx": 7}])
NAMES = ["sentence", "label", "source", "idx"]


def test_columns_become_a_prompt_and_a_completion() -> None:
    template = {"prompt": "{sentence} It was", "completion": " {label}"}
    filled = fill_template(ROWS, NAMES, template, {"label": ["terrible", "great"]}, keep="source")
    assert list(filled) == [{"source": "s", "prompt": "Fine {film}. It was", "completion": " great"}]
    named = fill_template(ROWS, NAMES, template, {"label": {0: "bad", 1: "good"}}, keep="source")
    assert named[0]["completion"] == " good"
    stream = fill_template(ROWS.to_iterable_dataset(), NAMES, template, {"label": ["terrible", "great"]}, keep="source")
    assert list(stream) == list(filled)


def test_a_column_may_be_replaced_by_one_that_contains_it() -> None:
    filled = fill_template(ROWS, NAMES, {"sentence": "<{sentence}>"}, {}, keep="source")
    assert filled[0] == {"sentence": "<Fine {film}.>", "source": "s"}


@pytest.mark.parametrize(
    ("template", "labels", "error", "message"),
    [
        ({"prompt": "{sentense}"}, {}, DataError, "'sentense', which the data does not have. Did you mean 'sentence'"),
        ({"prompt": "{label}"}, {"label": ["only"]}, DataError, "value 1, which data.labels does not map to a text"),
        ({"prompt": "{"}, {}, ConfigError, "is not a valid format string"),
        ({"prompt": "{sentence.__class__}"}, {}, ConfigError, "only column names are allowed in braces"),
        ({"prompt": "{}"}, {}, ConfigError, "only column names"),
    ],
)
def test_errors(template: Any, labels: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fill_template(ROWS, NAMES, template, labels, keep="source")


def test_each_entry_of_a_mixture_may_have_its_own(tmp_path: Any) -> None:
    first, second = str(tmp_path / "first.jsonl"), str(tmp_path / "second.jsonl")
    ROWS.remove_columns("source").to_json(first)
    Dataset.from_list([{"q": "1?", "a": "2"}]).to_json(second)
    entries = [
        MixtureEntry(first, template={"prompt": "{sentence}", "completion": "{label}"}, labels={"label": ["-", "+"]}),
        MixtureEntry(second, columns={"prompt": "q", "completion": "a"}, source="letters"),
    ]
    parts = read_mixture(DataSettings(), entries, seed=0).train
    assert [list(part) for part in parts] == [
        [{"prompt": "Fine {film}.", "completion": "+", "source": "first"}],
        [{"prompt": "1?", "completion": "2", "source": "letters"}],
    ]
