"""The pages in a real browser, wide and as narrow as a phone: no requests, and everything is readable.

`make test-slow` installs the browser and its driver, and names the browser in COLM_CHROMIUM.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.reports import MANY, write_comparison_folder, write_run
from tests.support.surveys import SIZES, survey_of

from colm.lab.report import read_run, write_comparison, write_report
from colm.lab.report.sources_page import write_sources_page

pytestmark = pytest.mark.slow

WIDTHS = (1280, 400)  # CSS pixels
SMALLEST = 11  # CSS pixels of a font
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
    one_seed = write_comparison_folder(folder / "one-seed", methods={"random": 0.0, "colm": 0.1}, seeds=1)
    runs = [read_run(each) for each in (mine, control, going)]
    return {
        "one": write_report(runs[:1], folder / "one.html"),
        "going": write_report(runs[2:], folder / "going.html"),
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
