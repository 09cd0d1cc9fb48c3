"""Line plots as SVG for a page: small, of fixed size, reproducible, with selectable text.

A plot is as wide as a narrow phone screen, so its text is never scaled down; pages lay plots out in a grid.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#000000", "#cc79a7", "#e69f00", "#56b4e9")
"""The color-blind safe palette of Okabe and Ito, without yellow, which is invisible on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1, 1.5), (6, 2, 1, 2))
"""Each dash pattern is used with all colors before the next pattern."""
GREY = "#595959"
GRID = "#dddddd"
_VARIABLES = {colour: f"var(--line-{i})" for i, colour in enumerate(COLOURS)}
_VARIABLES |= {GREY: "var(--soft)", GRID: "var(--grid)", "#000000": "var(--ink)"}
"""Colors as the page's style defines them, for a light and a dark screen."""

SIZE = (3.4, 2.15)  # inches; 326 by 206 CSS pixels
MOST_MARKED = 25
"""Lines with more points are drawn without markers, which would overlap."""

_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: smaller, searchable, accessible
    "svg.hashsalt": "colm",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "sans-serif"],
    "font.size": 8.5,  # points; 11.3 CSS pixels
    "path.simplify": True,
}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"font-(size|family): [^;]*;? ?")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_COLOUR = re.compile("#[0-9a-f]{6}")
_GROUP = re.compile(r"(line|band)-(\d+)")
ElementTree.register_namespace("", _SVG)


class PlotIds:
    """Generates prefixes, so that no two plots on a page share an id."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def next(self) -> str:
        """Return a new prefix."""
        return f"p{next(self._numbers)}-"


class Line(NamedTuple):
    """One line of a plot."""

    x: Sequence[float]
    y: Sequence[float]
    style: int  # number of the run or method, the same in every plot of a page; -1 for the reference
    low: Sequence[float] = ()  # lower edge of the band, if any
    high: Sequence[float] = ()
    name: str = ""  # shown with the values under the pointer


def draw_lines(
    lines: Sequence[Line],
    *,
    x_label: str,
    alt: str,
    ids: PlotIds,
    percent: bool = False,
    y_from: float | None = None,
    y_to: float | None = None,
) -> Markup:
    """Draw lines in one plot and return it as an `svg` element, or an empty text if no line has a point.

    Args:
        lines: the lines to draw; style -1 is gray and dashed.
        x_label: label of the x axis; the caption describes the y axis.
        alt: description of the plot for screen readers.
        ids: ids of the page.
        percent: show the values, which are fractions, as percentages.
        y_from: start of the y axis (default: below the lowest value).
        y_to: end of the y axis (default: above the highest value).
    """
    shown = [line for line in lines if len(line.x)]
    if not shown:
        return Markup("")
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.add_subplot()
        for number, line in enumerate(shown):
            _draw(axes, line, number)
        _limit(axes, shown, y_from, y_to)
        axes.set_xlabel(x_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer="second" not in x_label))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shorten(value)))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        if percent:
            apart = (axes.get_ylim()[1] - axes.get_ylim()[0]) / 6  # of two or more ticks
            digits = max(0, math.ceil(-math.log10(100 * apart)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.{digits}%}"))
        return _write_svg(figure, ids.next(), alt, _Values(axes, shown, x_label, percent))


def draw_key(style: int, ids: PlotIds) -> Markup:
    """Draw a short piece of a line for a legend, hidden from screen readers."""
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(0.4, 0.16))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        _draw(axes, Line([0, 0.5, 1], [0, 0, 0], style), marked=[1])
        axes.set_xlim(0, 1)
        axes.set_ylim(-1, 1)
        return _write_svg(figure, ids.next(), "")


def shorten(value: float) -> str:
    """Format a number for an axis.

    >>> [shorten(value) for value in (0.0, 0.25, 1500.0, 20000.0, 1250000.0)]
    ['0', '0.25', '1500', '20k', '1.25M']
    """
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e6 if unit == 'M' else 1e3):.4g}{unit}"
    return f"{value:.4g}"


class _Values(NamedTuple):
    """What the page's script needs to show the values under the pointer."""

    axes: Axes
    lines: Sequence[Line]
    x_label: str
    percent: bool


def _draw(axes: Axes, line: Line, number: int = 0, marked: Sequence[int] | None = None) -> None:
    if line.style < 0:
        axes.plot(line.x, line.y, color=GREY, linewidth=1.2, dashes=(4, 2), zorder=1, gid=f"line-{number}")
        return
    colour = COLOURS[line.style % len(COLOURS)]
    dashes = DASHES[line.style // len(COLOURS) % len(DASHES)]
    if len(line.low):
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0, gid=f"band-{number}")
    (drawn,) = axes.plot(line.x, line.y, color=colour, linewidth=1.6, markersize=4, gid=f"line-{number}")
    if dashes:
        drawn.set_dashes(dashes)
    if len(line.x) <= MOST_MARKED:
        drawn.set_marker(MARKERS[line.style % len(MARKERS)])
        drawn.set_markevery(list(marked) if marked is not None else None)


def _limit(axes: Axes, lines: Sequence[Line], y_from: float | None, y_to: float | None) -> None:
    """Fit the y axis to the lines, not to their bands, which a few seeds make very wide."""
    low = min(min(line.y) for line in lines) if y_from is None else y_from
    high = max(max(line.y) for line in lines)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    axes.set_ylim(low - room if y_from is None else low, high + room if y_to is None else y_to)


def _write_svg(figure: Figure, prefix: str, alt: str, values: _Values | None = None) -> Markup:
    """Return the figure as an `svg` element; the same figure gives the same text.

    Args:
        figure: drawn with ``svg.fonttype`` none and a ``svg.hashsalt``.
        prefix: prefix of the ids, unique for each plot on a page.
        alt: description for screen readers; may be empty.
        values: the lines, in order of their groups.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    root = ElementTree.fromstring(text)
    used = set(re.findall(r"#([\w-]+)", text))
    for element in list(root.iter()):
        element.text, element.tail = (element.text or "").strip() or None, None
        for child in list(element):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):  # the style would apply to the whole page
                element.remove(child)
        if values is not None:
            _mark(element, values.lines)
        _tidy(element, prefix, used)
    if values is not None:
        box = values.axes.get_position()
        (left, right), (low, high) = values.axes.get_xlim(), values.axes.get_ylim()
        root.set("data-box", _join((box.x0, box.x1, 1 - box.y0, 1 - box.y1)))  # of the width and the height
        root.set("data-view", _join((left, right, low, high)))
        root.set("data-label", values.x_label)
        root.set("data-kind", "share" if values.percent else "number")
    if alt:
        root.set("role", "img")
        root.set("aria-label", alt)
        title = ElementTree.Element(f"{{{_SVG}}}title")
        title.text = alt
        root.insert(0, title)
    else:
        root.set("aria-hidden", "true")
    root.set("stroke-linejoin", "round")
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _mark(element: ElementTree.Element, lines: Sequence[Line]) -> None:
    """Give the groups of a line and its band their style in place of their id, and the line its name and values."""
    group = _GROUP.fullmatch(element.get("id", ""))
    if group is None:
        return
    del element.attrib["id"]
    line = lines[int(group[2])]
    element.set("data-series", str(line.style))
    if group[1] == "line":
        element.attrib.update({"data-name": line.name, "data-x": _join(line.x, 7), "data-y": _join(line.y)})


def _join(values: Sequence[float], digits: int = 5) -> str:
    return " ".join(f"{value:.{digits}g}" for value in values)


def _tidy(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    """Keep the ids that something refers to, under the prefix; drop fonts, which the page sets, and extra digits."""
    for key, value in list(element.attrib.items()):
        if key.startswith("data-"):
            continue
        value = _NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value.strip())
        if key == "id" and value in used:
            element.set(key, prefix + value)
        elif key == "id" or (key == "transform" and value.startswith("rotate(-0 ")):
            del element.attrib[key]
        elif key == _XLINK:
            del element.attrib[key]
            element.set("href", f"#{prefix}{value[1:]}")
        elif key == "style":
            style = _FONT.sub("", value).replace("url(#", f"url(#{prefix}")
            element.set(key, _COLOUR.sub(lambda found: _VARIABLES.get(found[0], found[0]), style))
        else:
            element.set(key, value.replace("url(#", f"url(#{prefix}"))
