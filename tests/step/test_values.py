"""A value has one text form, whatever its container type."""

from __future__ import annotations

import json
import math
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colm.step.values import text_of_value

SCALARS = st.one_of(st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False))


@given(SCALARS)
def test_numbers_and_truth_values_read_as_json_writes_them(value: Any) -> None:
    assert text_of_value(value) == json.dumps(value)
    assert text_of_value(np.asarray(value)[()]) == json.dumps(value)
    assert text_of_value(np.asarray(value)) == json.dumps(value)
    assert text_of_value(pa.array([value])[0].as_py()) == json.dumps(value)
    assert text_of_value(torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)) == json.dumps(
        value
    )


@given(st.text())
def test_strings_are_unchanged(value: str) -> None:
    assert text_of_value(value) == value
    assert text_of_value(np.array([value + "."])[0]) == value + "."  # NumPy cuts zeros at the end


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (date(2024, 1, 5), "2024-01-05"),
        (np.datetime64("2024-01-05"), "2024-01-05"),
        (np.timedelta64(3600, "s").astype("m8[ns]"), "1:00:00"),
        (np.datetime64("2024-01-05T10:00:00.000000000"), "2024-01-05 10:00:00"),
        (pd.Timestamp("2024-01-05 10:00"), "2024-01-05 10:00:00"),
        (datetime(2024, 1, 5, 10), "2024-01-05 10:00:00"),
        (timedelta(hours=1), "1:00:00"),
        (Decimal("1.50"), "1.50"),
        (np.float32(0.5), "0.5"),
    ],
)
def test_dates_and_decimals(value: Any, text: str) -> None:
    assert text_of_value(value) == text


@pytest.mark.parametrize(
    "value",
    [
        None,
        math.nan,
        np.nan,
        np.float32("nan"),
        torch.tensor(math.nan),
        pd.NaT,
        pd.NA,
        np.datetime64("NaT", "s"),
        Decimal("NaN"),
    ],
)
def test_missing_values_are_missing_in_every_type(value: Any) -> None:
    assert text_of_value(value) is None


@pytest.mark.parametrize("value", [[], ["a"], {"a": 1}, (1,), b"a", np.array([1, 2]), torch.tensor([1]), object()])
def test_values_without_a_text_form(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be converted to text"):
        text_of_value(value)
