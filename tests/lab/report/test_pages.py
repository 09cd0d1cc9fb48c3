"""The pages as files: their content, that they are self-contained, and that data cannot become markup."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.support.reports import MANY, SIZES, write_comparison_folder, write_run

import colm.lab.report.page as page_module
from colm.errors import ConfigError
from colm.lab.report import read_run, write_comparison, write_report
from colm.lab.report.run_page import compare_configs, list_facts, show_config

EVIL = '<script>alert("1")</script> & <img src=x onerror=y>'
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects a page's tags, ids and visible words, and checks that its tags are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        held = dict(attrs)
        self.ids += [held["id"] or ""] if "id" in held else []
        self.links += [held["href"] or ""] if "href" in held else []
        self.addresses += [value or "" for key, value in attrs if key in ("src", "srcset", "action", "data")]
        assert not [key for key in held if key.startswith("on")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts.append(data)
        else:
            self.text += data


def check_alone(page: Page) -> None:
    assert page.source.startswith('<!doctype html>\n<html lang="en">')
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    script = (Path(page_module.__file__).parent / "templates" / "page.js").read_text().strip()
    assert page.scripts == [script]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\">" in page.source
    assert not re.search(r"fetch|XMLHttpRequest|import|innerHTML|insertAdjacent|eval\(|write\(|https?:", script)
    assert not page.addresses
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "url(" not in re.sub(r"url\(#p\d+-", "", page.source)
    assert page.tags.count("h1") == 1
    assert page.tags.count("table") == page.tags.count("caption")


def test_a_balanced_order_is_among_the_facts(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / name, selection={"features": "none", "order": name, "order_by": "tokens"}))
        for name in ("random", "balanced")
    ]
    assert [dict(list_facts(run)).get("Order") for run in runs] == [None, "balanced by tokens"]


def test_the_page_of_one_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "mine", sizes=MANY, line={"unlabelled": 3}))
    path = write_report([run], tmp_path / "report.html")
    page = Page(path)
    check_alone(page)
    for words in (
        "Run mine",
        "1 problem found",
        "Many rows have no token to learn from",
        "Likely cause",
        "Macro loss",
        "Micro loss",
        "Training loss",
        "one seed cannot decide whether the selection helps",
        "colm compare CONFIG.yaml --methods control colm --seeds 0 1 2",
        "Shares by source",
        "Match with the pool",
        "Selection's share of the step time",
        "Training mixture",
        "Kept share",
        "kept fraction of the source's pool rows, over 5 steps",
        "Table by source",
        "Most often kept",
        "Question 4: what is 4 + 4?",
        "learning_rate: 2.0e-05",
        "3,072 MiB",
    ):
        assert words in page.text, words
    assert all(page.text.count(name) >= 3 for name in MANY)
    assert page.tags.count("svg") == 3 + 2 + 3 * len(MANY)
    assert "has not finished" not in page.text
    assert "Side by side" not in page.text
    assert len(page.source) < 500_000
    write_report([run], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page.source


def test_the_page_of_a_run_in_progress_without_evaluations(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "going", finished=False)
    (folder / "evaluations.jsonl").unlink()
    (folder / "config.yaml").unlink()
    page = Page(write_report([read_run(folder)], tmp_path / "report.html"))
    check_alone(page)
    assert "going has not finished" in page.text
    assert "small sources, shares of the data and the micro loss are estimated" in page.text
    assert "The run has no values for this plot." in page.text
    assert "going has no config.yaml." in page.text
    assert "None to show" in page.text


def test_the_page_of_several_runs(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"seconds": 0.0, "match": None, "match_random": None}
    runs = [
        read_run(write_run(tmp_path / "mine", selection={"coordinates": 99})),
        read_run(write_run(tmp_path / "control", gain=0.3, selection={"features": "none"}, line=plain)),
        read_run(write_run(tmp_path / "other", sizes={**SIZES, "extra": 300}, seed=3)),
    ]
    page = Page(write_report(runs, tmp_path / "report.html"))
    check_alone(page)
    for words in (
        "3 runs",
        "Side by side",
        "Settings that differ",
        "The loss ends above the control's; one seed cannot decide",
        "one seed cannot decide whether they differ",
        "colm compare CONFIG.yaml --methods control colm --seeds 0 1 2",
        "of control",
        "extra",
    ):
        assert words in page.text, words
    assert "selection.\u200bcoordinates" in page.text
    keys = 3
    assert page.tags.count("svg") == keys + 3 + 3 + 3 * (len(SIZES) + 1)


def test_settings_that_differ(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "a", selection={"keep": 0.5})),
        read_run(write_run(tmp_path / "b", selection={"keep": 0.25, "adam": False})),
    ]
    dash = "\N{EN DASH}"
    assert compare_configs(runs) == [("selection.keep", ["0.5", "0.25"]), ("selection.adam", [dash, "False"])]
    assert compare_configs(runs[:1] * 2) == []


def test_access_tokens_are_not_shown() -> None:
    shown = show_config(
        {"training": {"hub_token": "hf_secret", "push_to_hub_token": None}, "selection": {"adam": True}}
    )
    assert "hf_secret" not in shown
    assert "hub_token: (hidden)" in shown
    assert "push_to_hub_token: null" in shown


def test_data_cannot_become_markup(tmp_path: Path) -> None:
    sizes = {"plain": 500, EVIL: 300, "$x^2$ \\frac": 40}
    folder = write_run(tmp_path / "<b>mine", sizes=sizes, losses={"$x^2$ \\frac": [1.0] * 10 + [2.0]})
    run = read_run(folder)
    run = run._replace(config={"model": EVIL}, most_kept=[run.most_kept[0]._replace(source=EVIL, text=EVIL)])
    page = Page(write_report([run], tmp_path / "report.html"))
    check_alone(page)
    assert page.text.count(EVIL) >= 5
    assert "$x^2$ \\frac" in page.text
    compared = write_comparison_folder(tmp_path / "<b>c", methods={"random": 0.0, "x<img src=y>": 0.1}, sizes=sizes)
    page = Page(write_comparison(compared))
    check_alone(page)
    assert "x<img src=y>" in page.text


def test_the_page_of_a_comparison(tmp_path: Path) -> None:
    methods = {"random": 0.0, "control": 0.05, "colm": 0.1, "colm+keep=0.25": -0.2}
    folder = write_comparison_folder(tmp_path / "c", methods=methods, sizes=MANY)
    path = write_comparison(folder, descriptions={"colm": "by exact gradients"})
    assert path == folder / "compare.html"
    page = Page(path)
    check_alone(page)
    for words in (
        "Comparison c",
        "4 methods on the same data, 3 seeds each",
        "95% t-interval",
        "by exact gradients, with keep=0.25",
        "Final loss minus that of control",
        "Final loss minus that of random",
        "By final macro loss over 3 seeds, colm is better than control; random and colm+keep=0.25 are worse",
        "The final macro loss of colm is",
        "not reached",
        "Against examples",
        "Against time",
        "the band spans the lowest to the highest seed",
    ):
        assert words in page.text, words
    assert re.search(r"\d\.\d{4} ± 0\.\d{4}", page.text)
    assert page.tags.count("svg") == len(methods) + 4 + 3 * (4 + len(MANY))
    assert len(page.source) < 1_500_000


def test_one_seed_is_explained(tmp_path: Path) -> None:
    folder = write_comparison_folder(tmp_path / "c", methods={"random": 0.0, "control": 0.1, "colm": 0.2}, seeds=1)
    page = Page(write_comparison(folder, out=tmp_path / "page.html"))
    check_alone(page)
    assert "One seed only, so there are no confidence intervals." in page.text
    assert "±" not in page.text
    assert "band" not in page.text


def test_a_comparison_without_a_baseline(tmp_path: Path) -> None:
    page = Page(write_comparison(write_comparison_folder(tmp_path / "c", methods={"colm": 0.0, "colm-spsa": 0.1})))
    check_alone(page)
    assert page.text.count("There is no control or random method to compare with.") == 2  # above, and under Differences
    assert "There is no random method with a final loss to match." in page.text


@pytest.mark.parametrize(("method", "loss"), [("colm", math.nan), ("random", math.inf)])
def test_a_method_that_diverged_is_not_better(tmp_path: Path, method: str, loss: float) -> None:
    folder = write_comparison_folder(tmp_path / "c", methods={"random": 0.0, "colm": 0.0}, seeds=2, steps=5)
    held = json.loads((folder / "compare.json").read_text())
    for run in held[method].values():
        run["macro"] = loss
    (folder / "compare.json").write_text(json.dumps(held))
    page = Page(write_comparison(folder))
    assert "not finite" in page.text
    assert not re.search("[▼▲] ?not finite", page.text)
    matched = "There is no random method with a final loss to match." not in page.text
    assert matched == (method != "random")


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "mine", steps=10))
    with pytest.raises(ConfigError, match=r"cannot be written to .*No such file or directory. Choose another --out"):
        write_report([run], tmp_path / "gone" / "report.html")
