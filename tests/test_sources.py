from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colm.errors import ConfigError, DataError
from colm.sources import count_sources, find_small_sources


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
