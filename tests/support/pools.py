"""A pool of sixteen rows of four sources."""

from __future__ import annotations

from typing import Any

from tests.support.models import ragged_batch

SIZES = {"big": 600, "large": 350, "small": 40, "tiny": 10}
SOURCES = ["big"] * 6 + ["tiny"] + ["large"] * 4 + ["small"] * 2 + ["big"] * 3
LENGTHS = [9, 7, 5, 8, 6, 4, 9, 5, 7, 8, 4, 6, 9, 5, 8, 7]


def pool_of_16() -> dict[str, Any]:
    return ragged_batch(LENGTHS)
