"""Convert a value of a data file to text: one rule for cells, labels and keys, in every file format."""

from __future__ import annotations

import json
import math
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any


def text_of_value(value: Any) -> str | None:
    """Return a value's text as in a JSON file, so that all file formats give the same text.

    Args:
        value: a string, number, boolean, date or time, or a NumPy or torch scalar.

    Returns:
        Strings unchanged, other values as JSON writes them; None for a missing value (None, NaN, NaT).

    Raises:
        TypeError: the value is a list, a mapping or another object without a text form.

    >>> [text_of_value(value) for value in ("007", 5, 5.0, True, None, math.nan)]
    ['007', '5', '5.0', 'true', None, None]
    """
    if isinstance(value, str):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy or torch scalar
        kind = getattr(value.dtype, "kind", "")
        held = value.item()
        # item() turns times in nanoseconds, which Python does not support, into a number.
        value = value.astype(f"{kind}8[us]").item() if kind in ("m", "M") and isinstance(held, int) else held
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, float | Decimal) and math.isnan(value):
        return None
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str | Decimal | date | time | timedelta):  # datetime is a date
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be converted to text: {str(value)[:80]!r}")
