"""Near-duplicates against the comparison of all pairs."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colm.lab.sources import duplicates
from colm.lab.sources.duplicates import ALIKE, SHINGLE, find_near_duplicates, hash_shingles


def shingles(row: list[int]) -> set[tuple[int, ...]]:
    width = min(SHINGLE, len(row))
    return {tuple(row[i : i + width]) for i in range(len(row) - width + 1)} if row else set()


def compare_all_pairs(rows: list[list[int]]) -> list[bool]:
    kept: list[set[tuple[int, ...]]] = []
    found = []
    for row in rows:
        own = shingles(row)
        found.append(bool(own) and any(len(own & other) >= ALIKE * len(own | other) for other in kept))
        if own and not found[-1]:
            kept.append(own)
    return found


def edited_rows(seed: int, rows: int) -> list[list[int]]:
    """Draw rows, half of them copies of an earlier one with a few tokens changed."""
    draw = random.Random(seed)
    made: list[list[int]] = []
    for _ in range(rows):
        if made and draw.random() < 0.5:
            row = list(draw.choice(made))
            for _ in range(draw.randint(0, 3)):
                row[draw.randrange(len(row))] = draw.randrange(1000)
        else:
            row = [draw.randrange(1000) for _ in range(draw.randint(1, 120))]
        made.append(row)
    return made


def test_it_finds_what_the_comparison_of_all_pairs_finds() -> None:
    rows = edited_rows(0, 400)
    found, right = find_near_duplicates(rows), compare_all_pairs(rows)
    assert sum(right) > 80
    assert sum(a != b for a, b in zip(found, right, strict=True)) <= 2


@given(st.lists(st.lists(st.integers(0, 3), max_size=9), max_size=12))
def test_the_same_row_again_is_always_found(rows: list[list[int]]) -> None:
    found = find_near_duplicates(rows + rows)
    assert all(again or not row for again, row in zip(found[len(rows) :], rows, strict=True))
    assert len(find_near_duplicates([])) == 0


@given(st.lists(st.integers(0, 5), max_size=20))
def test_different_shingles_have_different_hashes(row: list[int]) -> None:
    assert len(hash_shingles(row)) == len(shingles(row))


def test_the_work_is_linear_in_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def count(a: Any, b: Any) -> float:
        nonlocal compared
        compared += 1
        return 0.0

    monkeypatch.setattr(duplicates, "_jaccard", count)
    find_near_duplicates([[7, 8, 9]] * 300)  # all share all bands; all pairs would be 44,850
    assert compared == sum(min(number, duplicates.COMPARED) for number in range(300)) == 2364
