"""A matplotlib figure as an `svg` element for a page, without the parts that only a standalone file needs."""

from __future__ import annotations

import io
import re
from itertools import count
from xml.etree import ElementTree

from matplotlib.figure import Figure

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"font-(size|family): [^;]*;? ?")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
ElementTree.register_namespace("", _SVG)


class PlotIds:
    """Generates prefixes, so that no two plots on a page share an id."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def next(self) -> str:
        """Return a new prefix."""
        return f"p{next(self._numbers)}-"


def write_svg(figure: Figure, prefix: str, alt: str) -> str:
    """Return the figure as an `svg` element; the same figure gives the same text.

    Args:
        figure: drawn with ``svg.fonttype`` none and a ``svg.hashsalt``.
        prefix: prefix of the ids, unique for each plot on a page.
        alt: description for screen readers; may be empty.
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
        _tidy(element, prefix, used)
    if alt:
        root.set("role", "img")
        root.set("aria-label", alt)
        title = ElementTree.Element(f"{{{_SVG}}}title")
        title.text = alt
        root.insert(0, title)
    else:
        root.set("aria-hidden", "true")
    root.set("stroke-linejoin", "round")
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    """Keep the ids that something refers to, under the prefix; drop fonts, which the page sets, and extra digits."""
    for key, value in list(element.attrib.items()):
        value = _NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value.strip())
        if key == "id" and value in used:
            element.set(key, prefix + value)
        elif key == "id" or (key == "transform" and value.startswith("rotate(-0 ")):
            del element.attrib[key]
        elif key == _XLINK:
            del element.attrib[key]
            element.set("href", f"#{prefix}{value[1:]}")
        elif key == "style":
            element.set(key, _FONT.sub("", value).replace("url(#", f"url(#{prefix}"))
        else:
            element.set(key, value.replace("url(#", f"url(#{prefix}"))
