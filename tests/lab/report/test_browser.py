"""The pages in a real browser, wide and as narrow as a phone: no requests, everything is readable, switches work.

`make test-slow` installs the browser and its driver, and names the browser in COLM_CHROMIUM.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.reports import MANY, write_comparison_folder, write_run
from tests.support.reports import SIZES as FEW
from tests.support.surveys import SIZES, survey_of

from colm.lab.report import read_run, write_comparison, write_report
from colm.lab.report.sources_page import write_sources_page

pytestmark = pytest.mark.slow

WIDTHS = (1280, 400)  # CSS pixels
SMALLEST = 11  # CSS pixels of a font
SHORT = 6000  # CSS pixels of a page with fifteen sources
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"
PAGES = ("one", "going", "several", "compared", "one-seed", "sources")
METHODS = ["random", "control", "random-n", "highest-loss", "hidden-states", "colm-spsa", "colm", "colm-no-adam"]
METHODS += ["colm+keep=0.25,coordinates=512", "colm-no-small"]

QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]  # no network access by the browser
OFFENCES = (Path(__file__).parent / "offences.js").read_text()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    plain: dict[str, Any] = {"seconds": 0.001, "match": None, "match_random": None}
    rising = [4, 3, 2.5, 2.3, 2.2, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7]
    mine = write_run(folder / "mine", sizes=MANY, steps=300, losses={list(MANY)[-1]: rising}, line={"unlabelled": 2})
    control = write_run(
        folder / "control-" / "with-a-name-as-long-as-names-of-runs-become",
        sizes=MANY,
        gain=0.1,
        selection={"features": "none", "value_module": "model.layers.11.self_attn.v_proj.lora_B.default"},
        line=plain,
        memory=2**30,
    )
    going = write_run(folder / "going", finished=False)
    (going / "evaluations.jsonl").unlink()
    methods = {name: 0.02 * i for i, name in enumerate(METHODS)}
    compared = write_comparison_folder(folder / "compared", methods=methods, sizes=MANY, steps=2000)
    fifteen = {f"source-{i}": round(9000 * 0.7**i) + 20 for i in range(15)}
    evil = write_run(folder / EVIL.replace("/", ""), sizes={**FEW, EVIL: 300})
    one_seed = write_comparison_folder(folder / "one-seed", methods={"random": 0.0, "colm": 0.1}, seeds=1)
    runs = [read_run(each) for each in (mine, control, going)]
    return {
        "one": write_report(runs[:1], folder / "one.html"),
        "going": write_report(runs[2:], folder / "going.html"),
        "fifteen": write_report([read_run(write_run(folder / "fifteen", sizes=fifteen))], folder / "fifteen.html"),
        "evil": write_report([read_run(evil), runs[0]], folder / "evil.html"),
        "several": write_report(runs, folder / "several.html"),
        "compared": write_comparison(compared),
        "one-seed": write_comparison(one_seed),
        "sources": write_sources_page(survey_of(SIZES), folder / "sources.html", name="run", note="A part was read."),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = os.environ.get("COLM_CHROMIUM") or shutil.which("chromium")
    if not path or not Path(path).exists():
        pytest.fail(f"There is no browser (COLM_CHROMIUM is {path!r}); make test-slow installs one and names it.")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        pytest.fail(
            "playwright drives the browser and is not installed; make test-slow does, or pip install .[browser]."
        )
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=Path(path).resolve(), args=QUIET)
        yield opened
        opened.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read(name: str, width: int, pages: dict[str, Path], browser: Any) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = pages[name].as_uri()
    page.goto(address)
    assert page.evaluate(OFFENCES, SMALLEST) == []
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    assert page.evaluate(OFFENCES, SMALLEST) == []
    for link in page.locator("nav a").all():
        link.click()
        assert page.evaluate("document.querySelector(location.hash).getBoundingClientRect().top") < 900
    assert asked == [address]
    assert said == []
    assert len(page.locator("h1").screenshot()) > 1000  # bytes of a picture with letters in it
    page.close()


def test_the_checks_find_offences(tmp_path: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.set_content(
        '<div style="width: 900px">wide</div><table style="font-size: 9px"><tr><td>bare</td></tr></table>'
        '<figure><svg viewBox="0 0 300 200" width="300"><text x="290" y="100">beyond</text></svg></figure>'
    )
    found = " ".join(page.evaluate(OFFENCES, SMALLEST))
    for words in ("wide in a window of 400", "no container", "text of 9 pixels", "without axes", "a label beyond"):
        assert words in found
    page.close()


def open_page(browser: Any, path: Path, **options: Any) -> Any:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
    page.goto(path.as_uri())
    return page


def hover(page: Any, plot: Any, share: float) -> str:
    """Move the pointer to a place of the plot, as a share of its width, and return what the page shows there."""
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    shown: str = page.locator(".tip").inner_text()
    return shown


def test_the_pointer_shows_values(pages: dict[str, Path], browser: Any) -> None:
    page = open_page(browser, pages["one"])
    run = read_run(pages["one"].parent / "mine")
    plot = page.locator("figure svg").first
    losses = [sum(each.losses.values()) / len(each.losses) for each in run.evaluations]
    for share, i in ((0.99, -1), (0.1, 0)):
        shown = hover(page, plot, share).split()
        assert shown[:3] == ["optimizer", "steps", str(run.evaluations[i].step)]
        assert float(shown[-1]) == pytest.approx(losses[i], rel=2e-4)
    page.mouse.move(0, 0)
    assert not page.locator(".tip").is_visible()
    page.close()


def test_a_series_can_be_hidden(pages: dict[str, Path], browser: Any) -> None:
    page = open_page(browser, pages["compared"])
    plot = page.locator("figure svg").first
    keys = page.locator(".legend button")
    assert keys.all_inner_texts() == METHODS
    assert "colm-spsa " in hover(page, plot, 0.5)
    drawn = page.locator('figure [data-series="5"]')
    lines = drawn.count()
    keys.nth(5).click()
    assert page.locator('figure [data-series="5"][hidden]').count() == lines > 10
    assert not drawn.first.is_visible()
    assert keys.nth(5).get_attribute("aria-pressed") == "false"
    shown = hover(page, plot, 0.5)
    assert "colm-spsa " not in shown
    assert "random-n " in shown
    keys.nth(5).click()
    assert page.locator("figure [data-series][hidden]").count() == 0
    page.close()


def test_columns_sort_and_can_be_hidden(pages: dict[str, Path], browser: Any) -> None:
    page = open_page(browser, pages["one"])
    table = page.locator("table.sortable").first

    def column(number: int) -> list[str]:
        held: list[str] = table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()
        return held

    total = table.locator("tfoot").inner_text()
    kept = [float(text.replace(",", "")) for text in column(6)]
    table.get_by_role("button", name="Kept", exact=True).click()
    assert [float(text.replace(",", "")) for text in column(6)] == sorted(kept, reverse=True)
    assert table.locator("[aria-sort]").get_attribute("aria-sort") == "descending"
    table.get_by_role("button", name="Kept", exact=True).click()
    assert [float(text.replace(",", "")) for text in column(6)] == sorted(kept)
    table.get_by_role("button", name="Change").click()
    changes = [float(text.replace("\N{MINUS SIGN}", "-")) for text in column(11)]
    assert changes == sorted(changes, reverse=True)
    assert min(changes) < -1
    table.get_by_role("button", name="Source").click()
    assert column(1) == sorted(MANY)
    assert table.locator("tfoot").inner_text() == total
    page.locator(".columns summary").first.click()
    page.locator(".columns").first.get_by_label("Kept", exact=True).uncheck()
    assert table.locator("th:visible", has_text=re.compile("^Kept$")).count() == 0
    assert not table.locator("tbody tr > :nth-child(6)").first.is_visible()
    assert page.evaluate(OFFENCES, SMALLEST) == []
    page.close()


CONTRAST = """() => {
  const light = colour => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255);
    const [r, g, b] = parts.map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.documentElement).backgroundColor);
  const contrast = colour => (Math.max(light(colour), paper) + 0.05) / (Math.min(light(colour), paper) + 0.05);
  const texts = [...document.querySelectorAll("h1, p, td, th, a, .note, .state, figcaption, .empty, summary, li")];
  const lines = [...document.querySelectorAll("figure [data-series] > path")];
  return {
    paper,
    text: Math.min(...texts.map(each => contrast(getComputedStyle(each).color))),
    label: Math.min(...[...document.querySelectorAll("svg text")].map(each => contrast(getComputedStyle(each).fill))),
    line: Math.min(...lines.map(each => contrast(getComputedStyle(each).stroke))),
  };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["one", "several", "compared", "sources"])
def test_the_readers_colors(name: str, scheme: str, pages: dict[str, Path], browser: Any) -> None:
    page = open_page(browser, pages[name], color_scheme=scheme)
    found = page.evaluate(CONTRAST)
    assert (found["paper"] < 0.05) == (scheme == "dark")
    assert found["text"] >= 4.5
    if name != "sources":
        assert found["label"] >= 4.5
        assert found["line"] >= (3 if scheme == "dark" else 2)  # the palette of Okabe and Ito on white
    page.close()


def test_a_page_prints_in_light_colors_with_all_parts_open(pages: dict[str, Path], browser: Any) -> None:
    page = open_page(browser, pages["compared"], color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(CONTRAST)["paper"] == pytest.approx(1)
    assert page.locator(".columns:visible, nav:visible").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.group:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.group:not([open])").count() > 10
    assert len(page.pdf()) > 100_000
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["fifteen", "sources"])
def test_shares_are_on_the_first_screen_of_a_short_page(
    name: str, width: int, pages: dict[str, Path], browser: Any
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(pages[name].as_uri())
    box = page.locator(".shares").bounding_box()
    assert box["y"] + box["height"] < 900
    assert page.evaluate("document.documentElement.scrollHeight") < (SHORT if width > 1000 else 1.5 * SHORT)
    bars = [bar.bounding_box()["width"] for bar in page.locator(".shares .bars").first.locator(".bar").all()]
    shown = [float(text) for text in re.findall(r"[\d.]+(?=%)", page.locator(".shares .values").first.inner_text())]
    assert bars[0] / bars[1] == pytest.approx(shown[0] / shown[1], rel=0.02)
    page.close()


def test_without_javascript_everything_is_there(pages: dict[str, Path], browser: Any) -> None:
    page = open_page(browser, pages["several"], java_script_enabled=False)
    assert page.locator("button").count() == 0
    assert page.locator("figure svg").first.is_visible()
    page.locator("details.group summary").first.click()
    assert page.locator("details.group svg").first.is_visible()
    page.close()


def test_data_runs_nothing(pages: dict[str, Path], browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    told: list[str] = []
    page.on("dialog", lambda dialog: told.append(dialog.message))
    page.on("console", lambda message: told.append(message.text))
    page.goto(pages["evil"].as_uri())
    assert "onerror=alert(1)" in hover(page, page.locator("figure svg").first, 0.2)
    for button in page.locator(".legend button, thead button:visible").all():
        button.click()
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    assert told == []
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'alert(3)'}))")
    assert len(told) == 1  # the page's policy refuses a script other than its own
    assert "Content Security Policy" in told[0]
    page.close()
