"""The examples kept most and least often, with the start of their text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from colm.types import StepRecord

TEXT_CHARACTERS = 300


def describe_kept(
    records: Iterable[StepRecord], small: Iterable[str], train: Any, tokenizer: Any, *, count: int = 8
) -> dict[str, list[dict[str, Any]]]:
    """Return the examples of large sources that were kept most and least often.

    "Often" is relative to the source: times kept, minus the number expected from the source's share of kept rows. Ties
    go to the lower row number.

    Args:
        records: the run's records.
        small: sources whose rows are always kept, and which are therefore left out.
        train: tokenized rows by number, with ``input_ids``.
        tokenizer: turns them back into text.
        count: number of examples of each kind.

    Returns:
        ``most_kept`` and ``least_kept``, each a list of source, index, pooled, kept and text.
    """
    pooled: dict[tuple[str, int], int] = {}
    kept: dict[tuple[str, int], int] = {}
    for record in records:
        for held, counts in ((record.pool, pooled), (record.kept, kept)):
            for source, rows in held.items():
                for row in rows:
                    counts[source, row] = counts.get((source, row), 0) + 1
    always = set(small)
    visits: dict[str, int] = {}
    takes: dict[str, int] = {}
    for (source, row), times in pooled.items():
        visits[source] = visits.get(source, 0) + times
        takes[source] = takes.get(source, 0) + kept.get((source, row), 0)

    def surplus(key: tuple[str, int]) -> float:
        return kept.get(key, 0) - pooled[key] * takes[key[0]] / visits[key[0]]

    ranking = sorted((key for key in pooled if key[0] not in always), key=lambda key: (-surplus(key), key[1]))

    def describe(key: tuple[str, int]) -> dict[str, Any]:
        text = tokenizer.decode(train[key[1]]["input_ids"], skip_special_tokens=True)
        return {
            "source": key[0],
            "index": key[1],
            "pooled": pooled[key],
            "kept": kept.get(key, 0),
            "text": text[:TEXT_CHARACTERS],
        }

    most = [key for key in ranking if surplus(key) > 0][:count]
    least = sorted((key for key in ranking if surplus(key) < 0), key=lambda key: (surplus(key), key[1]))[:count]
    return {"most_kept": [describe(key) for key in most], "least_kept": [describe(key) for key in least]}
