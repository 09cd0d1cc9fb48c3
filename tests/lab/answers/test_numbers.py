from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colm.lab.answers.match import answers_match
from colm.lab.answers.numbers import is_number, iterate_numbers, parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("\u22125", -5),
        ("+5.", 5),
        ("007", 7),
        ("1,234", 1234),
        ("12,345,678.90", Fraction(1234567890, 100)),
        ("1{,}234", 1234),
        (".5", Fraction(1, 2)),
        ("5.0", 5),
        ("3/4", Fraction(3, 4)),
        ("3 / 4", Fraction(3, 4)),
        ("-3/4", Fraction(-3, 4)),
        ("0.5/2", Fraction(1, 4)),
        ("1 1/2", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"\frac12", Fraction(1, 2)),
        (r"2\frac{1}{2}", Fraction(5, 2)),
        (r"$\frac{1}{3}$", Fraction(1, 3)),
        ("1e3", 1000),
        ("1.5E-3", Fraction(3, 2000)),
        (r"1.5 \times 10^{3}", 1500),
        ("1.5 x 10^3", 1500),
        ("2\u00d710^-2", Fraction(1, 50)),
        ("$12.50", Fraction(25, 2)),
        (r"\$1,200", 1200),
        ("-$5", -5),
        ("$-5", -5),
        ("12.50 €", Fraction(25, 2)),
        ("12 km", 12),
        ("12km", 12),
        ("12 km/h", 12),
        ("12 m^2", 12),
        (r"12\text{ cm}", 12),
        (r"90^\circ", 90),
        ("$5 a day", 5),
        ("5 red apples", 5),
        ("x = 5", 5),
        ("3 + 2 = 5", 5),
        ("about 5", 5),
        ("**5**", 5),
        ("`5`", 5),
    ],
)
def test_one_number(text: str, value: Fraction) -> None:
    number = parse_number(text)
    assert number is not None
    assert number.value == value
    assert not number.percent


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ".", "five", "apples 5", "3 and 4", "2,3", "3-5", "10 - 3", "12:30", "1.2.3", "1,23", "1/2/2020"),
        *("2x", "x2", "5 x", "5 pi", r"5\pi", r"\sqrt{5}", "2^10", "1/0", r"\frac{1}{0}", "1e99999", "9" * 400),
        *("5 out of 10", "5 apples and oranges", "5 plus a few", "5 a b c d e f g", "--5", "-$-5", "nan", "inf"),
    ],
)
def test_not_a_single_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("12", "12.0", True),
        ("12", "12.1", False),
        ("12", "11.99999999", True),
        ("1000000", "1000001", False),  # integers are exact
        ("1/3", "2/6", True),
        ("1/3", "0.33", True),
        ("1/3", "0.3", False),  # one decimal place is too coarse to be a rounding
        ("1/3", "0.34", False),
        ("0.67", "0.6667", True),
        ("0.67", "0.66", False),
        ("3.14", "3.14159", True),
        ("0.01", "0.014", False),  # one significant digit
        ("0.30000000000000004", "0.3", True),
        ("3", "3.004", False),
        ("1.5e3", "1500", True),
        ("1.23e-5", "0.0000123", True),
        ("50%", "50", True),
        ("50%", "0.5", True),
        ("50%", "1/2", True),
        ("50 percent", "50%", True),
        ("50%", "0.5%", False),
        ("50", "0.5", False),
        ("33.33%", "1/3", True),
        ("12 km", "12 miles", True),  # units are not compared
        ("$12.50", "12.5", True),
        ("-5", "5", False),
    ],
)
def test_same_numbers(first: str, second: str, same: bool) -> None:
    assert answers_match(first, second) is same
    assert answers_match(second, first) is same


def find_numbers(text: str) -> list[str]:
    return [match.group().strip() for match in iterate_numbers(text) if is_number(match)]


def test_numbers_in_a_text() -> None:
    assert find_numbers("COVID-19 in 2020: 3-5 of x_1 at 1e9999, or 10 - 3.") == [
        "19",
        "2020",
        "3",
        "5",
        "10",
        "3",
    ]


integers = st.integers(-(10**12), 10**12)


@given(integers)
def test_integers_read_back_as_they_are_formatted(value: int) -> None:
    forms = [str(value), f"{value:,}", f"{value}.0", f"{value:,} apples", f"x = {value}.", f"\\text{{ }}{value}"]
    for form in forms:
        number = parse_number(form)
        assert number is not None
        assert number.value == value
        assert find_numbers(f"So it is {value:,}, I say") == [f"{value:,}"]


@given(integers, st.integers(1, 10**6), st.integers(0, 99))
def test_fractions_read_back(top: int, bottom: int, whole: int) -> None:
    number = parse_number(f"{top}/{bottom}")
    assert number is not None
    assert number.value == Fraction(top, bottom)
    number = parse_number(f"{whole} {abs(top)}/{bottom}")
    assert number is not None
    assert number.value == whole + Fraction(abs(top), bottom)
    sign = "-" if top < 0 else ""
    assert answers_match(f"{sign}\\frac{{{abs(top)}}}{{{bottom}}}", f"{top}/{bottom}")


@given(st.integers(-(10**9), 10**9), st.integers(0, 6))
def test_decimals_read_back(value: int, places: int) -> None:
    exact = Fraction(value, 10**places)
    text = f"{'-' if value < 0 else ''}{abs(value) // 10**places:,}.{abs(value) % 10**places:0{places}d}0"
    number = parse_number(text)
    assert number is not None
    assert number.value == exact
    assert answers_match(text, f"{float(exact):.{places}e}") == answers_match(f"{float(exact):.{places}e}", text)
    assert answers_match(text, f"{value}/{10**places}")
