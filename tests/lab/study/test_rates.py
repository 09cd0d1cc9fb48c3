"""The best learning rate of each method, from the folders of finished runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

from colm.lab.study.planning import search_folder
from colm.lab.study.rates import describe_rates, find_rates


def write_search(out: Path, losses: dict[str, dict[float, float]]) -> None:
    for method, by_rate in losses.items():
        for rate, loss in by_rate.items():
            folder = search_folder(out, method, rate, 0)
            folder.mkdir(parents=True)
            source = {"rows": 5, "eval_loss_after": loss}
            summary = {"steps": 1, "seconds": 1.0, "selection_seconds": 0.0, "peak_memory_bytes": 1}
            (folder / "summary.json").write_text(json.dumps({**summary, "small_sources": [], "sources": {"a": source}}))
            (folder / "config.yaml").write_text(f"training: {{learning_rate: {rate}}}\n")


def test_each_method_gets_the_rate_of_its_lowest_loss(tmp_path: Path) -> None:
    losses = {"random": {1e-3: 2.0, 2e-3: 1.5, 4e-3: 1.8}, "colm": {1e-3: 1.9, 2e-3: 1.7, 4e-3: math.nan}}
    write_search(tmp_path, losses)
    found = find_rates(tmp_path, list(losses), seed=0)
    assert {method: each.best for method, each in found.items()} == {"random": 2e-3, "colm": 2e-3}
    assert [each.at_end for each in found.values()] == [False, False]  # a rate that diverges bounds the search
    held = json.loads((tmp_path / "rates.json").read_text())
    assert held["random"]["0.002"] == {"macro": 1.5, "best": True}
    assert held["colm"]["0.004"] == {"macro": None, "best": False}
    lines = list(describe_rates(found))
    assert lines[0] == "random: learning rate 0.002 (macro loss by rate 0.001: 2.0000, 0.002: 1.5000, 0.004: 1.8000)"


def test_the_best_of_the_rates_tried_may_be_the_last(tmp_path: Path) -> None:
    write_search(tmp_path, {"random": {1e-3: 2.0, 2e-3: 1.5}})
    found = find_rates(tmp_path, ["random"], seed=0)
    assert "try others beyond it" in next(describe_rates(found))
    write_search(tmp_path, {"random": {4e-3: 1.7}, "colm": {2e-3: 1.0}})  # tried later
    found = find_rates(tmp_path, ["random"], seed=0)
    assert (found["random"].best, found["random"].at_end) == (2e-3, False)
    assert list(found) == ["random"]
    assert set(json.loads((tmp_path / "rates.json").read_text())) == {"random", "colm"}
