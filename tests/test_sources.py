from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colm.errors import ConfigError, DataError
from colm.sources import balance_sources, count_sources, find_small_sources


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 1000), min_size=1, max_size=10))
def test_small_means_below_the_uniform_share(sizes: dict[str, int]) -> None:
    small = find_small_sources(sizes, "auto")
    for name, size in sizes.items():
        assert (name in small) == (size < sum(sizes.values()) / len(sizes))
    assert small != set(sizes)  # the largest is never below the mean


def test_explicit_list_none_and_one_source(caplog: pytest.LogCaptureFixture) -> None:
    sizes = {"gsm": 90, "mbpp": 10}
    assert find_small_sources(sizes, ("gsm",)) == {"gsm"}
    assert find_small_sources(sizes, "none") == frozenset()
    with pytest.raises(ConfigError, match="names 'mbp', which is no source. Did you mean 'mbpp'"):
        find_small_sources(sizes, ("mbp",))
    assert find_small_sources({"a": 3}, "auto") == frozenset()
    assert "one source only, 'a'" in caplog.text


def test_an_empty_source_and_missing_labels() -> None:
    with pytest.raises(DataError, match="source 'b' has no example"):
        find_small_sources({"a": 1, "b": 0}, "auto")
    with pytest.raises(DataError, match="Row 1 has no source: its 'kind' is None"):
        count_sources(["a", None], "kind")
    with pytest.raises(DataError, match="Row 0 has no source"):
        count_sources(["  "])
    with pytest.raises(DataError, match="no row to count"):
        count_sources([])
    assert count_sources(["b", "a", "b"]) == {"a": 1, "b": 2}


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10_000), min_size=1), st.floats(0, 1))
def test_balancing_evens_sources_out_and_keeps_the_mean(sizes: dict[str, int], balance: float) -> None:
    found = balance_sources(sizes, balance)
    assert sum(found[name] * size for name, size in sizes.items()) == pytest.approx(sum(sizes.values()))
    ordered = sorted(sizes, key=lambda name: sizes[name])
    counts = [found[name] for name in ordered]
    assert counts == sorted(counts, reverse=True)  # a row of a smaller source counts no less
    sums = [found[name] * sizes[name] for name in ordered]
    assert all(later >= earlier * (1 - 1e-9) for earlier, later in itertools.pairwise(sums))  # nor its source more
    if balance == 1:
        assert sums == pytest.approx([sums[0]] * len(sums))
