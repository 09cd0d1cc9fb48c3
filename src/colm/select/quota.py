"""How many rows each source may keep."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from colm.errors import ConfigError


def source_quotas(counts: Mapping[str, int], budget: int, turn: int = 0) -> dict[str, int]:
    """Allocate `budget` to sources in proportion to their counts, by the largest-remainder method.

    Exact integer arithmetic. No source gets more than it has, and the quotas sum to the budget. Equal
    remainders are ranked by a hash of source and turn, so that no source is favored over many turns.

    Args:
        counts: rows of each source, each at least 0.
        budget: rows to allocate, from 0 to the sum of the counts.
        turn: step number.

    Raises:
        ConfigError: the budget is outside that range, or a count is negative.

    Source: CoLM, section 4.2, "in proportion to the source's share of the pool". The paper does
    not specify the rounding; largest remainder never shorts a source by more than one row.

    >>> source_quotas({"a": 60, "b": 40}, 5)
    {'a': 3, 'b': 2}
    """
    if any(count < 0 for count in counts.values()):
        raise ConfigError(f"counts={dict(counts)} contains a negative count; counts must be at least 0.")
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
    """Return a tie-breaking key: the same on every machine, and unrelated to the order of names."""
    return hashlib.sha256(f"{turn}:{name}".encode()).digest()
