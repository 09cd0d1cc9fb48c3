"""Self-contained pages: one HTML file with inline style, plots and one script, without requests.

The page is complete without its script, which shows values under the pointer, sorts and switches. The policy in the
page's head names the script by its digest, so a browser runs no other, whatever the data contains.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from hashlib import blake2b, sha256
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from colm.errors import ConfigError
from colm.lab.report.plots import PlotIds, draw_key
from colm.step.files import probe, replace_file

MISSING = "\N{EN DASH}"
UNKNOWN = "0" * 32
"""Placeholder for a page's digest while the digest is computed."""
HEAD_CHARACTERS = 1000
_MARK = re.compile(r'(<meta name="generator" content="colm )([0-9a-f]{32})(">)')
OLDER = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>"""
"""The beginning of pages written by versions without a mark."""


class Plot(NamedTuple):
    """A plot with title and caption."""

    title: str
    svg: Markup  # empty without data
    caption: str


class PlotGroup(NamedTuple):
    """The plots of one source or one loss, under their own heading."""

    name: str
    note: str
    plots: list[Plot]


class Key(NamedTuple):
    """One entry of a page's legend."""

    name: str
    svg: Markup
    style: int


def check_page(out: Path) -> None:
    """Check that a page can be written to a file, before doing the work.

    Raises:
        ConfigError: the file is not writable, is not a colm page, or was edited since.
    """
    if os.path.lexists(out) and not _is_own(out):
        raise ConfigError(
            f"{out} is not a page that colm wrote, or was edited since. Move it away, or choose another --out."
        )
    try:
        probe(out)
    except OSError as error:
        raise _unwritable(out, error) from error


def write_page(out: Path, template: str, **context: Any) -> Path:
    """Render a template of this package to a file and return its path.

    The page contains its own digest, which identifies it as written by colm.

    Raises:
        ConfigError: see `check_page`.
    """
    check_page(out)
    environment = _environment()
    script = environment.get_template("page.js").render().strip()
    policy = "sha256-" + base64.b64encode(sha256(script.encode()).digest()).decode()
    page = environment.get_template(template)
    text = page.render(digest=UNKNOWN, script=Markup(script), script_digest=policy, **context)
    try:
        replace_file(out, text.replace(UNKNOWN, _digest(text), 1))
    except OSError as error:
        raise _unwritable(out, error) from error
    return out


def _unwritable(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"The page cannot be written to {out}: {error.strerror}. Choose another --out.")


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _is_own(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    found = _MARK.search(text[:HEAD_CHARACTERS])
    if found is None:
        return text.startswith(OLDER)
    return found[2] == _digest(_MARK.sub(rf"\g<1>{UNKNOWN}\g<3>", text, count=1))


def draw_legend(names: Sequence[str], ids: PlotIds) -> list[Key]:
    """Return the legend of runs or methods, which have the styles 0, 1, ... in every plot."""
    return [Key(name, draw_key(style, ids), style) for style, name in enumerate(names)]


def show_number(value: float | None, digits: int = 3) -> str:
    """Return a number for a table, or a dash for None.

    >>> show_number(1.23456), show_number(None), show_number(float("nan"))
    ('1.235', '–', 'not finite')
    """
    if value is None:
        return MISSING
    return f"{value:,.{digits}f}" if isfinite(value) else "not finite"


def show_signed(value: float | None, digits: int = 3) -> str:
    """Return a difference with its sign, using a true minus sign.

    >>> show_signed(-0.5), show_signed(0.25)
    ('−0.500', '+0.250')
    """
    if value is None or not isfinite(value):
        return show_number(value)
    return f"{value:+,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def show_share(value: float | None) -> str:
    """Return a fraction as a percentage.

    >>> show_share(0.1234), show_share(None)
    ('12.3%', '–')
    """
    return MISSING if value is None else f"{100 * value:.1f}%"


def show_seconds(value: float | None) -> str:
    """Return a duration in a suitable unit.

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
        loader=jinja2.PackageLoader("colm.lab.report"),
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
