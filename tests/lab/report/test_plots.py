"""Plots as page elements."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from colm.lab.report.plots import COLOURS, Line, PlotIds, draw_key, draw_lines

LINE = Line([0, 10, 20], [4.0, 3.0, 2.5], 0, [3.9, 2.9, 2.4], [4.1, 3.1, 2.6])


def draw(*lines: Line, alt: str = "Loss.", ids: PlotIds | None = None, **changes: float) -> str:
    return draw_lines(lines, x_label="optimizer steps", alt=alt, ids=ids or PlotIds(), **changes)  # type: ignore[arg-type]


def test_a_plot_is_one_element_with_a_description() -> None:
    svg = draw(LINE, alt='Loss of "a & b" <i>.')
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("}svg")
    assert root.get("role") == "img"
    assert root.get("aria-label") == root[0].text == 'Loss of "a & b" <i>.'
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert "optimizer steps" in texts
    assert "20" in texts
    for word in ("<!DOCTYPE", "<?xml", "<style", "metadata", "http://www.w3.org/1999/xlink", "<i>"):
        assert word not in svg
    assert len(svg) < 10_000


def test_the_same_plot_is_the_same_text() -> None:
    assert draw(LINE) == draw(LINE)


def test_plots_of_one_page_share_no_id_and_refer_to_their_own() -> None:
    ids = PlotIds()
    plots = [draw(LINE, ids=ids), draw(LINE, ids=ids), draw_key(0, ids)]
    held = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in plots]
    assert all(held)
    assert len(set.union(*held)) == sum(map(len, held))
    for svg, own in zip(plots, held, strict=True):
        used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
        assert {a or b for a, b in used} <= own


def test_no_data_gives_an_empty_string() -> None:
    assert draw(Line([], [], 0)) == ""
    assert draw() == ""
    assert draw(Line([5], [1.0], 0), Line([], [], 1)) != ""


def test_styles_differ_and_the_reference_is_gray() -> None:
    keys = [re.sub(r"p1-[\w]+", "", draw_key(style, PlotIds())) for style in range(2 * len(COLOURS))]
    assert len(set(keys)) == len(keys)
    assert "stroke: var(--soft)" in draw(Line([0, 1], [1.0, 1.0], -1))


def test_lines_carry_their_values_for_the_script() -> None:
    root = ElementTree.fromstring(draw(LINE._replace(name="<b>"), Line([0, 123_456], [0.5, 1 / 3], -1)))
    groups = [element for element in root.iter() if "data-x" in element.attrib]
    found = {element.get("data-series"): element for element in groups}
    assert found["0"].get("data-name") == "<b>"
    assert (found["0"].get("data-x"), found["0"].get("data-y")) == ("0 10 20", "4 3 2.5")
    assert (found["-1"].get("data-x"), found["-1"].get("data-y")) == ("0 123456", "0.5 0.33333")
    assert len([element for element in root.iter() if element.get("data-series") == "0"]) == 2  # and its band
    left, right, bottom, top = map(float, root.get("data-box", "").split())
    low, high = map(float, root.get("data-view", "").split()[2:])
    points = re.findall(r"([\d.]+) ([\d.]+)", next(part.get("d", "") for part in found["0"] if part.get("d")))
    for (_, y), value in zip(points, LINE.y, strict=True):
        assert float(y) == pytest.approx(154.8 * (bottom + (top - bottom) * (value - low) / (high - low)), abs=0.02)
    assert 0 < left < right < 1


def test_colors_are_those_of_the_page() -> None:
    assert not re.search('#[0-9a-f]{6}[; "]', draw(*(LINE._replace(style=style) for style in range(7))))


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, 0.0], [1e-9, 2e-9], [5.0]])
def test_level_and_tiny_lines_have_an_axis(values: list[float]) -> None:
    assert "<text" in draw(Line(list(range(len(values))), values, 0))


def test_wide_bands_do_not_flatten_the_line() -> None:
    wide = LINE._replace(low=[-500.0] * 3, high=[500.0] * 3)
    texts = re.findall(r">([\d.]+)</text>", draw(wide))
    assert max(float(text) for text in texts if "." in text) < 10


@pytest.mark.parametrize("highest", [0.004, 0.03, 0.2, 1.0])
def test_shares_have_labels_that_differ(highest: float) -> None:
    line = Line([0, 1, 2], [0.0, highest / 2, highest], 0)
    svg = draw_lines([line], x_label="steps", alt="Share.", ids=PlotIds(), percent=True, y_from=0.0)
    labels = re.findall(r">([\d.]+%)</text>", svg)
    assert 3 <= len(labels) == len(set(labels))
