"""What the noise scale means for the rows of a step, in words."""

from __future__ import annotations

NEAR = 2.0
"""A step is near the noise scale if their rows differ by at most this factor: the estimate is not much better."""

ADVICE = {
    "below": "More rows a step, or a smaller learning rate, would make steps less noisy",
    "near": "Neither many steps nor many rows are wasted",
    "above": "More rows a step would bring little, and with fewer each would count more",
}


def explain_noise(scale: float, rows: int) -> str:
    """Return in words what a noise scale, in rows, means for steps of `rows` rows.

    A step of b rows makes b / (b + B) of the progress of one of unlimited rows, B being the noise scale and each with
    its best learning rate.

    Source: McCandlish, Kaplan, Amodei et al., 2018, arXiv:1812.06162.

    >>> explain_noise(680.3, 32).partition(": ")[2].partition(" of the")[0]
    'a step of 32 rows is below it and makes about 4%'
    """
    place = "below" if rows * NEAR < scale else "above" if rows > scale * NEAR else "near"
    shown = f"{scale:,.0f}" if scale >= 10 else f"{scale:.2g}"
    return (
        f"The noise scale at the end was about {shown} rows: a step of {rows:,} rows is {place} it and makes about "
        f"{rows / (rows + scale):.0%} of the progress of a step of unlimited rows. {ADVICE[place]}."
    )
