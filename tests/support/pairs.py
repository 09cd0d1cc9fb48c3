"""A few cases in which all pairs of the factors' levels occur."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

Case = dict[str, Any]


def pairs_of(case: Case) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Return the pairs of levels of a case."""
    return set(combinations(case.items(), 2))


def all_pairs(
    factors: Mapping[str, Sequence[Any]], possible: Callable[[Case], bool] = lambda _: True
) -> tuple[list[Case], int]:
    """Choose cases greedily, each the one with the most pairs that no case before it has.

    Args:
        factors: name -> levels.
        possible: whether a case can be; pairs that occur in impossible cases only are left out.

    Returns:
        The cases, in which every pair occurs, and how many cases the full product has.
    """
    product_of_all = [dict(zip(factors, levels, strict=True)) for levels in product(*factors.values())]
    left = [(case, pairs_of(case)) for case in product_of_all if possible(case)]
    count, wanted, chosen = len(left), set().union(*(pairs for _, pairs in left)), []
    while wanted:
        case, pairs = max(left, key=lambda one: len(one[1] & wanted))
        chosen.append(case)
        wanted -= pairs
    return chosen, count
