"""How a value of a data file reads as text: one rule for cells, labels and keys, whatever format they came from."""

from __future__ import annotations

import json
import math
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any


def text_of_value(value: Any) -> str | None:
    """Return the text that a value has in a JSON file, so that all file formats give the same text for it.

    Args:
        value: a text, number, truth value, date or time, also as a scalar of NumPy or torch.

    Returns:
        Texts as they are, others as JSON writes them; None for a missing value (None, NaN, NaT).

    Raises:
        TypeError: the value is a list, a mapping or another thing without a text of its own.

    >>> [text_of_value(value) for value in ("007", 5, 5.0, True, None, math.nan)]
    ['007', '5', '5.0', 'true', None, None]
    """
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # of NumPy or torch
        kind = getattr(value.dtype, "kind", "")
        held = value.item()
        # Times in nanoseconds, which Python does not have, become a number.
        value = value.astype(f"{kind}8[us]").item() if kind in ("m", "M") and isinstance(held, int) else held
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, float | Decimal) and math.isnan(value):
        return None
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str | Decimal | date | time | timedelta):  # datetime is a date
        return str(value)
    raise TypeError(f"a {type(value).__name__} has no text of its own: {str(value)[:80]!r}")
