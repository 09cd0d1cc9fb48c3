"""Caps and weights: how many rows of each source are left."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from colm.errors import DataError
from colm.lab.data.held_out import hold_out
from colm.lab.data.load import read_mixture
from colm.lab.data.mix import cap_rows, weigh_rows
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.mixing import fixed_shares, rows_by_share, temperature_shares


def parts_of(*sizes: dict[str, int]) -> list[Dataset]:
    rows = [
        [
            {"source": name, "id": i, "text": f"{name} {i} of {place}"}
            for name, size in part.items()
            for i in range(size)
        ]
        for place, part in enumerate(sizes)
    ]
    return [Dataset.from_list(part) for part in rows]


def count(parts: list[Dataset]) -> Counter[str]:
    return Counter(name for part in parts for name in part["source"])


def test_a_cap_holds_over_all_parts() -> None:
    parts = parts_of({"a": 20, "b": 3}, {"a": 20})
    assert count(cap_rows(parts, "source", 10, 0)) == {"a": 10, "b": 3}
    assert count(cap_rows(parts, "source", {"b": 1}, 0)) == {"a": 40, "b": 1}
    assert [list(part["id"]) for part in cap_rows(parts, "source", 10, 0)] == [
        list(part["id"]) for part in cap_rows(parts, "source", 10, 0)
    ]
    with pytest.raises(DataError, match="data.cap names 'c', which is not a source of the data. The sources are: a, b"):
        cap_rows(parts, "source", {"c": 1}, 0)


def test_weights_are_shares_of_as_many_rows() -> None:
    parts = parts_of({"maths": 90, "code": 10}, {"maths": 20})
    weighed = weigh_rows(parts, "source", {"maths": 1, "code": 1}, 0)
    assert count(weighed) == {"maths": 60, "code": 60}
    repeated = Counter(row["id"] for part in weighed for row in part if row["source"] == "code")
    assert set(repeated.values()) == {6}
    drawn = Counter(
        (number, row["id"]) for number, part in enumerate(weighed) for row in part if row["source"] == "maths"
    )
    assert max(drawn.values()) == 1
    assert count(weigh_rows(parts, "source", {"maths": 0, "code": 2.5}, 0)) == {"code": 120}
    assert len(weigh_rows(parts, "source", {"maths": 0, "code": 1}, 0)) == 1  # an empty part is dropped


def test_temperature_draws_powers_of_the_sizes() -> None:
    parts = parts_of({"maths": 81, "code": 1})
    assert count(weigh_rows(parts, "source", {}, 0, 4.0)) == {"maths": 62, "code": 20}  # 3 : 1
    assert count(weigh_rows(parts, "source", {}, 0, 1.0)) == {"maths": 81, "code": 1}


def kept_by_list(parts: list[Dataset], choose: Any) -> list[list[int]]:
    """Return the rows that are kept of each part; `choose` gets a source and its places as a list."""
    places: dict[str, list[tuple[int, int]]] = {}
    for number, part in enumerate(parts):
        for row, name in enumerate(part["source"]):
            places.setdefault(name, []).append((number, row))
    kept = sorted(place for name in sorted(places) for place in choose(name, places[name]))
    rows = [[row for number, row in kept if number == part] for part in range(len(parts))]
    return [own for own in rows if own]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), min_size=1), min_size=1, max_size=3),
    st.integers(0, 12),
    st.integers(0, 5),
)
def test_rows_are_drawn_from_the_list_of_their_source(sizes: list[dict[str, int]], cap: int, seed: int) -> None:
    columns = [[name for name, size in own.items() for _ in range(size)] for own in sizes]
    random.Random(seed).shuffle(columns[0])
    parts = [Dataset.from_dict({"source": column}) for column in columns]
    numbered = [part.add_column("place", list(range(len(part)))) for part in parts]
    draw = random.Random(seed)
    capped = kept_by_list(parts, lambda _, held: draw.sample(held, cap) if len(held) > cap else held)
    assert [list(part["place"]) for part in cap_rows(numbered, "source", cap, seed)] == capped
    total = sum(map(len, parts))
    counts = sum((Counter(part["source"]) for part in parts), Counter())
    wanted = rows_by_share(total, temperature_shares(dict(sorted(counts.items())), 3.0))
    again = random.Random(seed)

    def weigh(name: str, held: list[Any]) -> list[Any]:
        whole, rest = divmod(wanted[name], len(held))
        return held * whole + again.sample(held, rest)

    weighed = weigh_rows(numbered, "source", {}, seed, 3.0)
    assert [list(part["place"]) for part in weighed] == kept_by_list(parts, weigh)


@settings(max_examples=25)
@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 12), min_size=1),
    st.dictionaries(st.sampled_from("abc"), st.floats(0.1, 5), min_size=3),
)
def test_no_row_is_repeated_before_all_of_its_source_are_used(sizes: dict[str, int], weights: dict[str, float]) -> None:
    weighed = weigh_rows(parts_of(sizes), "source", {name: weights[name] for name in sizes}, 3)
    times = Counter((row["source"], row["id"]) for part in weighed for row in part)
    for name, size in sizes.items():
        own = [times[name, i] for i in range(size)]
        assert max(own) - min(own) <= 1
        assert sum(own) >= 1


def test_a_weight_for_an_unknown_source_and_a_source_without_weight() -> None:
    with pytest.raises(DataError, match="data.weights names 'mahts', which is not a source .* Did you mean 'maths'"):
        fixed_shares("data.weights", {"mahts": 1}, ["code", "maths"])
    with pytest.raises(DataError, match="no weight for the source 'maths'; give every source one, 0 to leave it out"):
        fixed_shares("data.weights", {"code": 1}, ["code", "maths"])
    with pytest.raises(DataError, match="All data.weights are 0"):
        fixed_shares("data.weights", {"code": 0}, ["code"])


def test_rows_are_held_out_of_a_source_not_of_a_file() -> None:
    parts = parts_of({"a": 20, "b": 3}, {"a": 30}, {"b": 1})
    rest, held = hold_out(parts, "source", 5, seed=0)
    assert count(held) == {"a": 5, "b": 2}  # at most half
    assert count(rest) == {"a": 45, "b": 2}
    assert all(len(part) for part in [*rest, *held])
    assert count(hold_out(parts, "source", {"a": 7}, seed=0)[1]) == {"a": 7}
    with pytest.raises(DataError, match="data.validation_rows names 'c', which is not a source"):
        hold_out(parts, "source", {"c": 7}, seed=0)


def test_two_files_of_one_source_hold_out_its_rows_once(tmp_path: Any) -> None:
    entries = []
    for name in ("first", "second"):
        path = str(tmp_path / f"{name}.jsonl")
        Dataset.from_list([{"prompt": f"{name} {i}?", "completion": f"{i}"} for i in range(40)]).to_json(path)
        entries.append(MixtureEntry(path, source="x"))
    mixture = read_mixture(DataSettings(validation_rows=5), entries, seed=0)
    assert (count(mixture.train), count(mixture.validation)) == ({"x": 75}, {"x": 5})


def test_rows_are_held_out_then_capped_then_weighted(tmp_path: Any) -> None:
    rows = [{"source": "ab"[i % 4 == 0], "prompt": f"{i}?", "completion": f"{i}"} for i in range(80)]
    path = str(tmp_path / "rows.jsonl")
    Dataset.from_list(rows).to_json(path)
    data = DataSettings(train=path, validation_rows={"a": 10}, cap={"a": 20}, weights={"a": 1, "b": 1})
    mixture = read_mixture(data, [], seed=0)
    assert count(mixture.validation) == {"a": 10}
    assert count(mixture.train) == {"a": 20, "b": 20}
    held = {row["prompt"] for part in mixture.validation for row in part}
    assert not held & {row["prompt"] for part in mixture.train for row in part}
    warm = read_mixture(replace(data, weights={}, temperature=10.0**9), [], seed=0)
    assert count(warm.train) == {"a": 20, "b": 20}
    with pytest.raises(DataError, match="data.validation_rows names 'c', which is not a source"):
        read_mixture(replace(data, validation_rows={"c": 1}), [], seed=0)
    with pytest.raises(DataError, match="The demo holds out the same number of rows of each source"):
        read_mixture(replace(data, train="demo"), [], seed=0)
