"""What a comparison shows, in words: the difference of each method from the control, and one sentence of conclusion."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

from colm.lab.intervals import Interval
from colm.lab.report.comparison import CONTROL, RANDOM, Method, find_method, loss_differences
from colm.lab.report.page import show_number, show_signed

MORE_SEEDS = "run colm compare with --seeds 0 1 2 or more"


class Conclusion(NamedTuple):
    """The result of a comparison in words."""

    sentence: str
    differences: list[str]  # a sentence for each method but the one compared with


def conclude(methods: Sequence[Method]) -> Conclusion:
    """State the result of a comparison: final macro losses minus the control's, paired by seed.

    Args:
        methods: the content of `compare.json`, see `comparison.read_comparison`. Without ``control``, the others
            are compared with ``random``.
    """
    base = find_method(methods, CONTROL) or find_method(methods, RANDOM)
    if base is None:
        return Conclusion("There is no control or random method to compare with.", [])
    others = [method for method in methods if method is not base]
    found = {method.name: loss_differences(method, base)["macro"] for method in others}
    return Conclusion(_conclude(found, base.name), [state_difference(method, base) for method in others])


def state_difference(method: Method, base: Method) -> str:
    """State in one sentence whether the method's macro loss differs from the base's, given the seeds."""
    found, mine, its = loss_differences(method, base)["macro"], method.name, base.name
    if found is None:
        return f"{mine} and {its} have no common seed."
    if not isfinite(found.mean):
        return f"The macro loss of {mine} or {its} is not finite."
    amount = show_number(abs(found.mean), 4)
    than = "lower" if found.mean < 0 else "higher"
    ends = f"The final macro loss of {mine} is {amount} {than} than that of {its}"
    if found.half is None:
        return f"{ends} on their one common seed, which cannot rule out chance."
    span = f"{show_signed(found.mean - found.half, 4)} to {show_signed(found.mean + found.half, 4)}"
    if not found.sign:
        return (
            f"Final macro losses of {mine} and {its} do not differ significantly over {found.seeds} seeds "
            f"(difference {show_signed(found.mean, 4)}, 95% interval {span})."
        )
    return f"{ends} (95% interval {span}, {found.seeds} seeds)."


def _conclude(found: dict[str, Interval | None], base: str) -> str:
    if not found:
        return f"There is no method to compare with {base}."
    known = {name: each for name, each in found.items() if each is not None and isfinite(each.mean)}
    tested = {name: each for name, each in known.items() if each.half is not None}
    if not tested:
        if not known:
            return f"No method has a final macro loss to compare with that of {base}."
        return f"One seed cannot decide whether a method is better than {base}: {MORE_SEEDS}."
    words = {-1: "better than", 1: "worse than", 0: "not clearly different from"}
    parts = []
    for sign, word in words.items():
        names = [name for name, each in tested.items() if each.sign == sign]
        if names:
            parts.append(f"{_list(names)} {'is' if len(names) == 1 else 'are'} {word} {base}")
    seeds = sorted({each.seeds for each in tested.values()})
    return f"By final macro loss over {' or '.join(map(str, seeds))} seeds, {'; '.join(parts)}."


def _list(names: Sequence[str]) -> str:
    """Join names as in a sentence.

    >>> _list(["a"]), _list(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
