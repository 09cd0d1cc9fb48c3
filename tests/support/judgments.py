"""Pairs of model output and expected answer, with a human's verdict, grouped by kind."""

from __future__ import annotations

from typing import NamedTuple


class Pair(NamedTuple):
    """One expected judgment."""

    kind: str
    said: str
    expected: str
    right: bool


WRITINGS: dict[str, list[tuple[str, str]]] = {
    "a plain number": [
        *(
            ("42", "42"),
            ("-7", "-7"),
            ("3.5", "3.5"),
            ("1,234", "1234"),
            ("0.50", "0.5"),
            ("1/2", "1/2"),
            (".5", "0.5"),
        ),
        *(("12,345,678", "12345678"), ("1000000", "1,000,000"), ("2.0", "2"), ("1 1/2", "1.5"), ("-3/4", "-0.75")),
    ],
    "LaTeX": [
        *((r"\frac{1}{2}", "0.5"), (r"\dfrac{3}{4}", "3/4"), (r"\frac12", "1/2"), (r"-\frac{1}{4}", "-1/4")),
        *((r"$\frac{7}{2}$", "3.5"), (r"2\frac{1}{2}", "2.5"), (r"\text{42}", "42"), (r"\mathrm{42}", "42")),
        *(
            (r"\(42\)", "42"),
            (r"\[42\]", "42"),
            (r"$$42$$", "42"),
            (r"\$42", "42"),
            (r"42\%", "42%"),
            ("1{,}234", "1234"),
        ),
        *((r"1\,000", "1000"), (r"$- 5$", "-5"), (r"\mathbf{42}", "42"), (r"$\boxed{42}$", "42"), (r"x = 42", "42")),
        *((r"42\text{ km}", "42"), (r"42^\circ", "42"), (r"\textbf{42}", "42"), (r"\tfrac{5}{8}", "0.625")),
    ],
    "units": [
        *(
            ("42 km", "42"),
            ("42km", "42"),
            ("42 km/h", "42"),
            ("42 m^2", "42"),
            ("42 apples", "42"),
            ("42 red apples", "42"),
        ),
        *(("42 °C", "42"), ("42°", "42"), ("42 kg", "42"), ("42 a day", "42"), ("42 per hour", "42"), ("42nd", "42")),
        *(
            ("5 feet", "5"),
            ("12 cm", "12"),
            ("3.5 liters", "3.5"),
            ("9 m/s", "9"),
            ("8 hours", "8"),
            ("7 in total", "7"),
        ),
    ],
    "percent": [
        *(
            ("50%", "50%"),
            ("50%", "0.5"),
            ("50 percent", "50"),
            ("50%", "1/2"),
            ("12.5%", "0.125"),
            ("50 per cent", "50%"),
        ),
    ],
    "currency": [
        *(("$42", "42"), ("$1,200", "1200"), ("€42", "42"), ("42 dollars", "42"), ("$12.50", "12.5"), ("Rs. 42", "42")),
        *(
            ("Rs 1,00,000", "100000"),
            ("USD 42", "42"),
            ("US$42", "42"),
            ("42 €", "42"),
            ("-$5", "-5"),
            ("£3.20", "3.2"),
        ),
    ],
    "bold and code": [
        *(("**42**", "42"), ("`42`", "42"), ("*42*", "42"), ("__42__", "42"), ("<b>42</b>", "42"), ("**-7**", "-7")),
    ],
    "a remark": [
        *(("42 (40 + 2)", "42"), ("**42** (40 + 2)", "42"), ("**42** (40+2)", "42"), ("42 (since 40 + 2 is 42)", "42")),
        *(
            ("42 (he had 50 before)", "42"),
            ("42, not 43", "42"),
            ("42, which is 40 + 2", "42"),
            ("42 because 40 + 2", "42"),
        ),
        *(("42, since he had 40 and got 2", "42"), ("42 - that is 40 and 2", "42"), ("42 km (26 miles)", "42")),
        *(
            ("42; he had 40 before", "42"),
            ("42, rather than 43", "42"),
            ("42 \u2014 not 43", "42"),
            ("42 [see above]", "42"),
        ),
        *(
            ("$42$ (with 2 left)", "42"),
            ("42 (half of 84)", "42"),
            ("7 (3 red, 4 blue)", "7"),
            ("42 instead of 43", "42"),
        ),
        *(("42. He had 40 before", "42"), ("42! That is all", "42"), ("$42$!", "42"), ("not 43 but 42", "42")),
    ],
    "groups of digits": [
        *(
            ("1 000 000", "1000000"),
            ("12 345", "12345"),
            ("1\u00a0000", "1000"),
            ("1\u202f234,", "1234"),
            ("12,34,567", "1234567"),
        ),
    ],
    "other digits and signs": [
        *(
            ("\u22125", "-5"),
            ("minus 5", "-5"),
            ("negative 5", "-5"),
            ("½", "0.5"),
            ("2½", "2.5"),
            ("\uff14\uff12", "42"),
        ),
        *(("+5", "5"), ("x = - 5", "-5"), ("x = -5", "-5")),
    ],
    "powers of ten": [
        *(
            ("10^5", "100000"),
            ("10^{5}", "100000"),
            ("10**5", "100000"),
            ("10⁵", "100000"),
            ("1.5e3", "1500"),
            ("10^-2", "0.01"),
        ),
        *((r"1.5 \times 10^3", "1500"), ("1.5 x 10^3", "1500"), ("2·10^3", "2000")),
    ],
    "words for powers of ten": [
        *(("5 million", "5000000"), ("1.5 million", "1500000"), ("$1.5 million", "1,500,000"), ("20k", "20000")),
        *(("3 thousand", "3000"), ("2 dozen", "24"), ("$3M", "3000000"), ("2 billion people", "2000000000")),
        *(("4 hundred", "400"), ("2 hundred thousand", "200000"), ("3 lakh", "300000"), ("half", "half")),
    ],
    "powers and factorials": [("2^10", "1024"), ("5!", "120"), ("2^{10}", "1024"), ("2**10", "1024"), ("2¹⁰", "1024")],
}
"""By kind: pairs of model output and expected answer, all correct."""

PART_OF_SOMETHING: list[tuple[str, str]] = [
    *(
        ("10^5", "10"),
        ("10^5", "5"),
        ("10^{5}", "10"),
        ("10**5", "10"),
        ("10**5", "105"),
        ("10⁵", "10"),
        ("10⁵", "105"),
    ),
    *(
        ("2^10", "2"),
        ("2^10", "10"),
        ("2^n", "2"),
        ("x^2", "2"),
        ("x²", "2"),
        ("5²", "5"),
        ("e^5", "5"),
        ("(x+1)^2", "2"),
    ),
    *(
        (r"3\pi", "3"),
        ("3π", "3"),
        ("3 pi", "3"),
        ("3*pi", "3"),
        (r"3 \pi", "3"),
        (r"\frac{\pi}{3}", "3"),
        ("π/3", "3"),
    ),
    *(
        ("2x", "2"),
        ("2 x", "2"),
        ("2*x", "2"),
        ("2xy", "2"),
        ("2 xy", "2"),
        ("2ab", "2"),
        ("x + 5", "5"),
        ("5 + x", "5"),
    ),
    *(("x - 5", "5"), ("5 - x", "5"), ("x-5", "5"), ("1/x", "1"), ("x/2", "2"), ("x / 2", "2"), (r"\frac{x}{5}", "5")),
    *(
        (r"\frac{5}{x}", "5"),
        (r"\frac{x+1}{5}", "5"),
        ("5(x+1)", "5"),
        ("5 (x + 1)", "5"),
        ("f(5)", "5"),
        ("5n + 3", "3"),
    ),
    *(("5!", "5"), ("5! + 1", "5"), ("3i", "3"), ("3 + 4i", "3"), ("3 + 4i", "4"), ("2e", "2"), ("2 e", "2")),
    *((r"\pm 5", "5"), ("±5", "5"), ("+/- 5", "5"), (r"\pm 5", "-5"), ("plus or minus 5", "5"), ("5 ± 1", "5")),
    *(
        ("√5", "5"),
        (r"\sqrt{5}", "5"),
        (r"\sqrt 5", "5"),
        ("sqrt(5)", "5"),
        (r"2\sqrt{5}", "2"),
        ("2√5", "2"),
        ("2 sqrt(5)", "2"),
    ),
    *(
        ("the square root of 5", "5"),
        (r"\log 5", "5"),
        ("log(5)", "5"),
        (r"\log_2 5", "5"),
        (r"\sin(5)", "5"),
        ("5 squared", "5"),
    ),
    *(("5 million", "5"), ("$1.5 million", "1.5"), ("20k", "20"), ("$20K", "20"), ("5bn", "5"), ("3 thousand", "3")),
    *(("2 dozen", "2"), ("4 hundred", "4"), ("2 hundred thousand", "200"), ("5 thirds", "5"), ("5 and a half", "5")),
    *(("2½", "2"), ("2 1/2", "2"), (r"2\frac{1}{2}", "2"), ("1/2", "2"), ("1/2", "1"), ("3.14", "3"), ("1,234", "234")),
    *(
        ("half of 5", "5"),
        ("5 plus a few", "5"),
        ("5 times x", "5"),
        ("5 mod 3", "5"),
        ("5 choose 2", "5"),
        ("x_5", "5"),
    ),
    *(
        (r"\binom{5}{2}", "5"),
        (r"\{5, 6\}", "5"),
        ("5, 6", "5"),
        ("5, 6", "6"),
        ("(5, 6)", "5"),
        ("[5, 6]", "6"),
        ("5 or 6", "5"),
    ),
    *(
        ("5 and 6", "6"),
        ("5-6", "5"),
        ("5 to 6", "5"),
        ("between 5 and 6", "5"),
        ("12:30", "12"),
        ("3:4", "3"),
        ("1,23", "1"),
    ),
    *(
        ("5/10/2020", "5"),
        ("1.2.3", "1.2"),
        ("5 out of 6", "5"),
        ("5 feet 6 inches", "5"),
        ("x = 3, y = 4", "4"),
        ("x = 3 or x = 4", "4"),
    ),
    *(
        (r"5 \times 6", "5"),
        ("5 * 6", "6"),
        ("5 \u00d7 6", "5"),
        ("5 x 6", "6"),
        ("5 ÷ 6", "5"),
        ("5 + 6", "6"),
        ("5%", "5.5"),
    ),
]
"""Numbers that are only part of the answer."""

DENIED: list[tuple[str, str]] = [
    *(
        ("not 5", "5"),
        ("not equal to 5", "5"),
        ("x ≠ 5", "5"),
        (r"x \neq 5", "5"),
        ("x != 5", "5"),
        ("> 5", "5"),
        ("x > 5", "5"),
    ),
    *((r"x \ge 5", "5"), ("x >= 5", "5"), ("x < 5", "5"), (r"x \leq 5", "5"), ("at least 5", "5"), ("at most 5", "5")),
    *(("more than 5", "5"), ("less than 5", "5"), ("5 or more", "5"), ("5+", "5"), ("never 5", "5"), ("up to 5", "5")),
    *(("6, not 5", "5"), ("6 rather than 5", "5"), ("6 (not 5)", "5"), ("6 (5 + 1)", "5"), ("6 (he had 5)", "5")),
]
"""Numbers that are negated, are bounds, or appear in a remark."""

OPTIONS: list[tuple[str, str, bool]] = [
    *(
        ("B", "B", True),
        ("(B)", "B", True),
        ("b", "B", True),
        ("B.", "B", True),
        ("B) 12 km", "B", True),
        ("B (12 km)", "B", True),
    ),
    *(
        ("B - 12 km", "B", True),
        ("option B", "B", True),
        ("**B**", "B", True),
        (r"\text{B}", "B", True),
        (r"\textbf{(B)}\ 5", "B", True),
    ),
    *(
        ("B, because A is too large", "B", True),
        ("B is correct", "B", True),
        ("[B]", "B", True),
        ("(B), not (C)", "B", True),
    ),
    *(
        ("not (B)", "B", False),
        ("not B", "B", False),
        ("B or C", "B", False),
        ("(B) and (C)", "B", False),
        ("B, C", "B", False),
    ),
    *(
        ("B/C", "B", False),
        ("(B) is wrong", "B", False),
        ("A", "B", False),
        ("A dog", "A", False),
        ("neither (A) nor (B)", "B", False),
    ),
    *(
        ("(A) is wrong, it is (B)", "A", False),
        ("not (A) but (B)", "B", True),
        ("Because", "B", False),
        ("$B$", "B", True),
    ),
]

TRUTHS: list[tuple[str, str, bool]] = [
    *(
        ("yes", "yes", True),
        ("Yes, it is", "yes", True),
        ("**Yes**", "yes", True),
        ("true", "yes", True),
        ("No.", "no", True),
    ),
    *(
        ("Yes (it is even)", "yes", True),
        ("No \u2014 it is odd", "no", True),
        ("not true", "true", False),
        ("not true", "false", True),
    ),
    *(("No solution", "no", False), ("yes or no", "yes", False), ("no", "yes", False), (r"\text{Yes}", "yes", True)),
]

TEXTS: list[tuple[str, str, bool]] = [
    *(
        ("Paris", "paris", True),
        ("**Paris**", "Paris", True),
        ("Paris (in France)", "Paris", True),
        ("the Seine", "Seine", True),
    ),
    *(
        ("Paris, not London", "Paris", True),
        ("London, not Paris", "Paris", False),
        ("London (not Paris)", "Paris", False),
    ),
    *(
        ("Paris!", "Paris", True),
        ("'Paris'", "Paris", True),
        ("London", "Paris", False),
        ("Paris (Texas)", "Paris (France)", False),
    ),
]

FORMULAS: list[tuple[str, str, bool]] = [
    *(
        (r"\frac{x}{2}", "x/2", True),
        ("x + 1", "x+1", True),
        ("3π", r"3\pi", True),
        ("3 pi", "3*pi", True),
        ("2x", "2*x", True),
    ),
    *(
        (r"\sqrt{2}", "sqrt(2)", True),
        ("√2", r"\sqrt{2}", True),
        ("x^{2}", "x^2", True),
        ("x**2", "x^2", True),
        ("(1, 2)", "(1,2)", True),
    ),
    *(
        (r"\left(1, 2\right)", "(1,2)", True),
        ("y = 2x + 1", "2x+1", True),
        (r"$2\cdot x$", "2x", True),
        (r"\{1, 2\}", r"\{1,2\}", True),
    ),
    *(
        (r"[0, \infty)", "[0,∞)", True),
        (r"\pm 5", "±5", True),
        (r"\dfrac{\pi}{4}", r"\frac{\pi}{4}", True),
        ("n!", "n", False),
    ),
    *(
        ("(1,2)", "[1,2]", False),
        ("(1,2)", "(2,1)", False),
        ("x+1", "x-1", False),
        ("2x", "x^2", False),
        ("x/2", "2/x", False),
    ),
    *(
        ("y = 2x + 1", "x = 2x + 1", False),
        (r"\sqrt{2}", "2", False),
        ("3π", "π", False),
        ("x > 5", "x < 5", False),
        ("-x", "x", False),
    ),
    *(
        (r"\sqrt{23}", r"\sqrt{2}3", False),
        ("x^{23}", "x^23", True),
        ("x^{2}3", "x^23", False),
        ("2^x", "2x", False),
        ("x5", "5", False),
    ),
]

SAYINGS = (
    "The answer is {}",
    "So the final answer is: {}",
    "#### {}",
    "We count. Answer: {}",
    "\\boxed{{{}}}",
    "**Answer:** {}",
)
"""Phrasings of an answer; each pair above is tested with every phrasing that suits it."""


def judgments() -> list[Pair]:
    """Return all pairs, to be phrased by `sayings`."""
    return [
        *(Pair(kind, said, expected, True) for kind, pairs in WRITINGS.items() for said, expected in pairs),
        *(Pair("part of something", said, expected, False) for said, expected in PART_OF_SOMETHING),
        *(Pair("denied", said, expected, False) for said, expected in DENIED),
        *(Pair("options", *pair) for pair in OPTIONS),
        *(Pair("truths", *pair) for pair in TRUTHS),
        *(Pair("texts", *pair) for pair in TEXTS),
        *(Pair("formulas", *pair) for pair in FORMULAS),
    ]


def sayings(said: str) -> list[str]:
    """Return the completions that end in an answer; a box contains no sentence and no other wrapping."""
    plain = all(mark not in said for mark in ("**", "`", "! ", ". ", "boxed", "*4", "__", "<b>", "\\[", "$$", "!"))
    return [how.format(said) for how in SAYINGS if plain or "boxed" not in how]
