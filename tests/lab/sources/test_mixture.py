"""The survey of a mixture, and when it warns."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from colm import SelectionConfig
from colm.lab.data.demo import demo_rows
from colm.lab.data.formats import Rendering
from colm.lab.data.tokenize import tokenize_rows
from colm.lab.sources import mixture
from colm.lab.sources.mixture import find_warnings, survey_mixture
from colm.lab.sources.pools import expect_pool
from colm.models import train_tiny_tokenizer


def tokens(rows: Dataset) -> tuple[Dataset, Any]:
    tokenizer = train_tiny_tokenizer(row["prompt"] for row in rows)
    options: dict[str, Any] = {"format_name": "auto", "rendering": Rendering(300), "source_column": "source"}
    return tokenize_rows([rows], tokenizer, **options), tokenizer


def survey(rows: Dataset, **changes: Any) -> mixture.Survey:
    found, tokenizer = tokens(rows)
    selection = changes.pop("selection", SelectionConfig())
    return survey_mixture(found, tokenizer, selection, source_column="source", pool_rows=32, slots=4, **changes)


def test_each_source_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "SAMPLE", 50)
    found = survey(demo_rows(300, 0))
    assert [source.name for source in found.sources][:2] == ["gsm_symbolic", "chain_sum"]
    legs = next(source for source in found.sources if source.name == "leg_counting")
    assert "legs" in legs.words
    assert len(legs.examples) == 3
    assert "animals" in legs.examples[0][1]
    assert legs.outlook.small
    assert legs.why == "15 rows are fewer than the uniform share of 33"
    assert found.sources[0].looked_at == 50
    assert legs.looked_at == 15
    assert legs.mean_length <= legs.long_length <= 300
    again = survey(demo_rows(300, 0))
    assert again == found


def test_near_duplicates_and_short_sources_are_seen() -> None:
    rows = [{"source": "a", "prompt": f"{i * 7919 % 1000} times {i * i}?", "completion": str(i)} for i in range(40)]
    rows += [{"source": "b", "prompt": "The very same question, word for word?", "completion": "yes"}] * 10
    rows += [{"source": "c", "prompt": "lone", "completion": "x"}]
    found = survey(Dataset.from_list(rows))
    assert {source.name: source.duplicates for source in found.sources}["b"] == 0.9
    assert "Near-duplicates" in [warning.title for warning in found.warnings]
    assert len(found.sources[2].examples) == 1


@pytest.mark.parametrize(
    ("sizes", "changes", "title", "words"),
    [
        ({"a": 50}, {}, "One source", "none is small"),
        ({"a": 50, "b": 50}, {}, "No small source", "The 2 sources have from 50 to 50 rows, none below 50"),
        ({"a": 90, "b": 10}, {"small_sources": "none"}, "No small source", "Small_sources is none"),
        ({"a": 60, "b": 40}, {}, "Balanced sources", "differ by less than a factor of 2"),
        ({"a": 9990, "b": 10}, {}, "Small sources are rarely in a pool", "0.03 rows of small sources"),
        ({"a": 45, "b": 28, "c": 27}, {"keep": 0.25}, "Small sources fill the budget", "no row of a large source"),
        ({"a": 90, "b": 10}, {"keep": 1.0}, "Every row is kept", "only costs time"),
    ],
)
def test_it_warns_with_the_reason(sizes: dict[str, int], changes: dict[str, Any], title: str, words: str) -> None:
    selection = SelectionConfig(**changes)
    found = list(find_warnings(sizes, selection, expect_pool(sizes, selection, 32, 4)))
    assert title in [warning.title for warning in found]
    assert words in next(warning.reason for warning in found if warning.title == title)
    assert all(warning.advice for warning in found)


def test_a_suitable_mixture_has_no_warning() -> None:
    sizes = {"a": 800, "b": 100, "c": 50}
    assert not list(find_warnings(sizes, SelectionConfig(), expect_pool(sizes, SelectionConfig(), 128, 8)))


def test_why_a_source_is_small_follows_the_rule() -> None:
    rows = Dataset.from_list([{"source": "ab"[i % 2], "prompt": f"{i}?", "completion": "1"} for i in range(10)])
    reasons = {
        source.name: source.why for source in survey(rows, selection=SelectionConfig(small_sources=["a"])).sources
    }
    assert reasons == {"a": "named in small_sources", "b": "not named in small_sources"}
    assert survey(rows, selection=SelectionConfig(small_sources="none")).sources[0].why == "small_sources is none"
