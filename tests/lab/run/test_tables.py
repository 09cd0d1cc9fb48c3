"""Tables of many sources in the terminal."""

from __future__ import annotations

from typing import Any

import pytest
from rich.table import Table

from colm.lab.cli.answer_tables import run_table
from colm.lab.cli.console import make_console
from colm.lab.cli.source_tables import pool_table
from colm.lab.run.summary import summary_table
from colm.lab.sources.pools import Outlook, SourceOutlook

SHARE = {"value": 0.5, "low": 0.2, "high": 0.8}


def make_summary(count: int) -> Table:
    losses = {"eval_loss_before": 2.0, "eval_loss_after": 1.0}
    sources = {f"s{n:04}": {"rows": count - n, "pooled": 1, "kept": 1, **losses} for n in range(count)}
    return summary_table({"sources": sources, **losses})


def make_pools(count: int) -> Table:
    sources = {f"s{n:04}": SourceOutlook(count - n, True, 1.0, 1.0, 0.1) for n in range(count)}
    return pool_table(Outlook(sources, 8, 4, 1.0, 0.0))


def make_answers(count: int) -> Table:
    line: dict[str, Any] = {"in_domain": True, "exact": SHARE, "cut_off": 0, "no_answer": 0, "prompts_cut": 0}
    # In another order than by size.
    sources = {
        f"s{n:04}": {**line, "rows": count - n, "unanswerable": 0} for n in sorted(range(count), key=lambda n: n % 7)
    }
    group = {"rows": count, "macro": SHARE, "micro": SHARE}
    return run_table({"sources": sources, "in_domain": group, "out_of_domain": None, "all": group}, "run")


@pytest.mark.parametrize(
    ("make", "where"),
    [(make_summary, "summary.json"), (make_pools, "colm sources"), (make_answers, "answers.json")],
)
def test_of_more_than_fifty_sources_the_largest_and_the_smallest_are_shown(
    make: Any, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for count, shown in ((50, range(50)), (2000, [*range(25), *range(1975, 2000)])):
        make_console().print(make(count))
        text = capsys.readouterr().out
        found = [int(word[1:]) for word in text.split() if word[0] == "s" and word[1:].isdigit() and len(word) == 5]
        assert sorted(found) == list(shown)
        assert ("... 1,950 more" in text) == (count == 2000)
        assert (where in " ".join(text.split())) == (count == 2000)
