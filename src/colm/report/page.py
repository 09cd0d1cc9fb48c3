"""Pages that stand alone: one HTML file with its style and its plots in it, which asks for nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from colm.errors import ConfigError
from colm.report.plots import draw_key
from colm.report.svg import PlotIds

MISSING = "\N{EN DASH}"


class Plot(NamedTuple):
    """A plot with its title and what has to be said about it."""

    title: str
    svg: Markup  # empty where there is nothing to draw
    caption: str


class Key(NamedTuple):
    """One entry of a page's legend."""

    name: str
    svg: Markup


def write_page(out: Path, template: str, **context: Any) -> Path:
    """Render a template of this package to a file and return its path.

    Raises:
        ConfigError: the file can not be written.
    """
    text = _environment().get_template(template).render(**context)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"The page can not be written to {out}: {error.strerror}. Choose another --out.") from error
    return out


def draw_legend(names: Mapping[str, int], ids: PlotIds) -> list[Key]:
    """Return the keys to names that have styles of their own."""
    return [Key(name, Markup(draw_key(style, ids))) for name, style in names.items()]


def show_number(value: float | None, digits: int = 3) -> str:
    """Return a number for a table, or a dash where there is none.

    >>> show_number(1.23456), show_number(None), show_number(float("nan"))
    ('1.235', '–', 'not finite')
    """
    if value is None:
        return MISSING
    return f"{value:,.{digits}f}" if isfinite(value) else "not finite"


def show_signed(value: float | None, digits: int = 3) -> str:
    """Return a difference with its sign, by a true minus.

    >>> show_signed(-0.5), show_signed(0.25)
    ('−0.500', '+0.250')
    """
    if value is None or not isfinite(value):
        return show_number(value)
    return f"{value:+,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def show_share(value: float | None) -> str:
    """Return a fraction in per cent.

    >>> show_share(0.1234), show_share(None)
    ('12.3 %', '–')
    """
    return MISSING if value is None else f"{100 * value:.1f} %"


def show_seconds(value: float | None) -> str:
    """Return a duration in the unit that suits it.

    >>> [show_seconds(value) for value in (0.0123, 12.3, 300.0, 7260.0)]
    ['0.012 s', '12.3 s', '5.0 min', '2.0 h']
    """
    if value is None:
        return MISSING
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if value >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.1f} s" if value >= 10 else f"{value:.3f} s"


def show_bytes(value: int | None) -> str:
    """Return an amount of memory.

    >>> show_bytes(48 * 2**30), show_bytes(3 * 2**30), show_bytes(None)
    ('48.0 GiB', '3,072 MiB', '–')
    """
    if value is None:
        return MISSING
    return f"{value / 2**30:.1f} GiB" if value >= 10 * 2**30 else f"{value / 2**20:,.0f} MiB"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("colm.report"),
        autoescape=True,  # names and texts come from data
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": show_number,
        "signed": show_signed,
        "share": show_share,
        "seconds": show_seconds,
        "bytes": show_bytes,
    }
    return environment
