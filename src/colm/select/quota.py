"""How many rows each source may keep."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from colm.errors import ConfigError


def source_quotas(counts: Mapping[str, int], budget: int, turn: int = 0) -> dict[str, int]:
    """Share `budget` out over sources in proportion to their counts, by largest remainder.

    Exact in integers. No source gets more than it has, and the quotas sum to the budget. Of equal
    remainders, those win whose hash with the turn is smaller, so that over many turns no source is preferred.

    Args:
        counts: rows of each source, each at least 0.
        budget: rows to share out, from 0 to the sum of the counts.
        turn: the number of the step.

    Raises:
        ConfigError: the budget is outside that range, or a count is negative.

    Source: CoLM, section 4.2, "in proportion to the source's share of the pool". The paper does
    not say how it rounds; largest remainder never starves a source by more than one row.

    >>> source_quotas({"a": 60, "b": 40}, 5)
    {'a': 3, 'b': 2}
    """
    if any(count < 0 for count in counts.values()):
        raise ConfigError(f"A count in {dict(counts)} is negative; counts must be at least 0.")
    total = sum(counts.values())
    if not 0 <= budget <= total:
        raise ConfigError(f"budget={budget} is outside [0, {total}], the number of rows to choose from.")
    if total == 0:
        return dict.fromkeys(counts, 0)
    quotas = {name: budget * count // total for name, count in counts.items()}
    by_remainder = sorted(counts, key=lambda name: (-(budget * counts[name] % total), _draw(name, turn)))
    for name in by_remainder[: budget - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _draw(name: str, turn: int) -> bytes:
    """Return what decides between equals: any order will do that names do not rule, the same on every machine."""
    return hashlib.sha256(f"{turn}:{name}".encode()).digest()
