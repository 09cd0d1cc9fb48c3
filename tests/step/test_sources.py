from __future__ import annotations

import itertools
import json
import logging
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.models import tiny_model

from colm import CoresetSelector, MixtureBatchSampler, SelectionConfig
from colm.errors import ConfigError, DataError
from colm.step.sources import (
    RowsLeft,
    balance_sources,
    count_sources,
    find_small_sources,
    name_keys,
    name_setting,
    name_sources,
    source_name,
)

LABELS = st.one_of(st.text(), st.booleans(), st.integers(), st.floats(allow_nan=False))
MISSING = [None, math.nan, np.float32("nan"), pd.NaT, pd.NA, Decimal("NaN"), "", " ", "\t\n"]


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 1000), min_size=1, max_size=10))
def test_small_sources_are_below_the_uniform_share(sizes: dict[str, int]) -> None:
    small = find_small_sources(sizes, "auto")
    for name, size in sizes.items():
        assert (name in small) == (size < sum(sizes.values()) / len(sizes))
    assert small != set(sizes)  # the largest is never below the mean


def test_explicit_list_none_and_one_source(caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"gsm": 90, "mbpp": 10}
    assert find_small_sources(sizes, ("gsm",)) == {"gsm"}
    assert find_small_sources(sizes, "none") == frozenset()
    with pytest.raises(ConfigError, match="names 'mbp', which is not a source. Did you mean 'mbpp'"):
        find_small_sources(sizes, ("mbp",))
    assert find_small_sources({"a": 3}, "auto") == frozenset()
    assert not caplog.text  # reports and summaries ask, too


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("rule", ["auto", "none"])
def test_one_source_is_said_once_whatever_chooses_the_rows(rule: Any, caplog: pytest.LogCaptureFixture) -> None:
    selector = CoresetSelector(tiny_model(), SelectionConfig(small_sources=rule), {"a": 3})
    selector.follow_sizes({"a": 4})  # of a stream
    said = "The only source is 'a', so none is small and no row is kept for its source."
    assert warnings_of(caplog) == [said] * (rule == "auto")
    MixtureBatchSampler(["a"] * 3, 1, small_sources=rule)
    assert warnings_of(caplog) == [said] * (rule == "auto") * 2


@pytest.mark.parametrize(
    ("sizes", "warns"), [((63, 62), True), ((99, 50), True), ((100, 50), False), ((60, 60), False), ((900, 40), False)]
)
def test_sources_of_nearly_equal_size_are_reported(
    sizes: tuple[int, int], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    counts = dict(zip("ab", sizes, strict=True))
    CoresetSelector(tiny_model(), SelectionConfig(), counts)
    CoresetSelector(tiny_model(), SelectionConfig(small_sources="none"), counts)
    found = [record.message for record in caplog.records if "hardly smaller" in record.message]
    assert len(found) == warns
    assert all(f"from {min(sizes)} to {max(sizes)} rows" in each for each in found)


def test_an_empty_source_and_missing_labels() -> None:
    with pytest.raises(DataError, match="source 'b' has no example"):
        find_small_sources({"a": 1, "b": 0}, "auto")
    with pytest.raises(DataError, match="Row 1 has no source: its 'kind' is None"):
        count_sources(["a", None], "kind")
    with pytest.raises(DataError, match="Row 0 has no source"):
        count_sources(["  "])
    with pytest.raises(DataError, match="data is empty, so there are no sources to count"):
        count_sources([])
    assert count_sources(["b", "a", "b"]) == {"a": 1, "b": 2}


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10_000), min_size=1), st.floats(0, 1))
def test_balancing_equalizes_sources_and_keeps_the_mean(sizes: dict[str, int], balance: float) -> None:
    found = balance_sources(sizes, balance)
    assert sum(found[name] * size for name, size in sizes.items()) == pytest.approx(sum(sizes.values()))
    ordered = sorted(sizes, key=lambda name: sizes[name])
    counts = [found[name] for name in ordered]
    assert counts == sorted(counts, reverse=True)  # a row of a smaller source counts no less
    sums = [found[name] * sizes[name] for name in ordered]
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in itertools.pairwise(sums))  # nor its source more
    if balance == 1:
        assert sums == pytest.approx([sums[0]] * len(sums))


@given(LABELS)
def test_a_label_has_one_name_wherever_it_is_given(label: Any) -> None:
    written = label if isinstance(label, str) else json.dumps(label)
    if not written.strip():
        assert source_name(label) is None
        return
    assert source_name(label) == written
    assert source_name(written) == written  # a name is its own name
    assert name_sources([label]) == [written]
    assert count_sources([label, written]) == {written: 2}
    assert name_setting("small_sources", label) == written
    assert name_keys("data.cap", {label: 5}) == {written: 5}


@given(st.dictionaries(LABELS.filter(lambda label: source_name(label) is not None), st.integers(), max_size=6))
def test_keys_become_names_and_none_is_lost(values: dict[Any, int]) -> None:
    names = [source_name(key) for key in values]
    if len(set(names)) < len(names):
        with pytest.raises(ConfigError, match="which both name the source"):
            name_keys("data.cap", values)
    else:
        assert name_keys("data.cap", values) == dict(zip(names, values.values(), strict=True))


@pytest.mark.parametrize(("one", "other"), [(0, "0"), ("true", True), (1.0, "1.0"), (False, "false")])
def test_two_keys_that_are_one_source_are_refused(one: Any, other: Any) -> None:
    name = str(one if isinstance(one, str) else other)
    with pytest.raises(
        ConfigError, match=f"data.cap has the keys {one!r} and {other!r}, .* both name the source '{name}'"
    ):
        name_keys("data.cap", {one: 5, other: 6})


@pytest.mark.parametrize("label", MISSING, ids=repr)
def test_missing_values_are_missing_in_every_type(label: Any) -> None:
    assert source_name(label) is None
    with pytest.raises(DataError, match="Row 1 has no source: its 'kind' is"):
        count_sources(["a", label], "kind")
    with pytest.raises(ConfigError, match="data.cap names the source .*; it must be a non-blank string"):
        name_keys("data.cap", {label: 5})


@pytest.mark.parametrize("label", [["a"], {"a": 1}, b"a", np.array(["a", "b"])], ids=str)
def test_values_that_cannot_be_labels(label: Any) -> None:
    with pytest.raises(DataError, match=f"Row 1 has a {type(label).__name__} as its source: its 'kind' is"):
        count_sources(["a", label], "kind")
    with pytest.raises(ConfigError, match="small_sources names the source"):
        name_setting("small_sources", label)


def test_dropped_rows_are_reported_by_source(caplog: pytest.LogCaptureFixture) -> None:
    counts = RowsLeft({"big": 50, "papers": 30, "whole": 5}, {"big": 48, "whole": 5}, "a labeled token within 64")
    assert counts.dropped == {"papers": 30, "big": 2}  # those without a row left first
    assert counts.gone == {"papers": "has 30 rows, but none has a labeled token within 64"}
    assert counts.describe() == {
        "papers": "30 rows, none with a labeled token within 64",
        "big": "2 of 50 rows without a labeled token within 64",
    }
    counts.warn()
    assert caplog.messages == [
        "32 of 85 rows have no labeled token within 64 and are dropped: 'papers' 30 of 30 (none is left), "
        "'big' 2 of 50."
    ]
    caplog.clear()
    RowsLeft({"big": 5}, {"big": 5}, "a label").warn()
    assert not caplog.messages
    many = {f"s{i:02}": 1 for i in range(25)}
    RowsLeft(many, {}, "a label").warn()
    assert "'s19' 1 of 1 (none is left), and 5 more sources." in caplog.text


def test_naming_a_source_without_rows_left_says_why() -> None:
    gone = RowsLeft({"a": 3, "papers": 1}, {"a": 3}, "a labeled token").gone
    with pytest.raises(ConfigError, match="names 'papers', which has 1 row, but none has a labeled token. The other"):
        find_small_sources({"a": 3}, ("papers",), gone)
