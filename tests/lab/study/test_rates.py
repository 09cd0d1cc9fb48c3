"""The best learning rate of each method, from the folders of finished runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from colm.errors import ConfigError
from colm.lab.run.settings import resolve_settings
from colm.lab.run.yaml12 import write_yaml
from colm.lab.study.planning import search_folder
from colm.lab.study.rates import describe_rates, find_rates, free_seed

BASE = {"model": "tiny", "output_dir": "out"}


def write_search(
    out: Path, losses: dict[str, dict[float, float]], steps: int = 5, digest: str = "1"
) -> dict[Path, dict[str, Any]]:
    runs = {}
    for method, by_rate in losses.items():
        for rate, loss in by_rate.items():
            folder = search_folder(out, method, rate, 0)
            folder.mkdir(parents=True)
            source = {"rows": 5, "eval_loss_after": loss}
            summary = {"steps": 1, "seconds": 1.0, "selection_seconds": 0.0, "peak_memory_bytes": 1}
            (folder / "summary.json").write_text(json.dumps({**summary, "small_sources": [], "sources": {"a": source}}))
            training = {"max_steps": steps, "use_cpu": True, "learning_rate": rate}
            runs[folder] = resolve_settings({**BASE, "training": training, "output_dir": str(folder)}).values
            (folder / "config.yaml").write_text(write_yaml(runs[folder]))
            (folder / "data.json").write_text(json.dumps({"train": {"rows": 5, "digest": digest}}))
    return runs


def test_each_method_gets_the_rate_of_its_lowest_loss(tmp_path: Path) -> None:
    losses = {"random": {1e-3: 2.0, 2e-3: 1.5, 4e-3: 1.8}, "colm": {1e-3: 1.9, 2e-3: 1.7, 4e-3: math.nan}}
    found = find_rates(tmp_path, write_search(tmp_path, losses))
    assert {method: each.best for method, each in found.items()} == {"random": 2e-3, "colm": 2e-3}
    assert [each.at_end for each in found.values()] == [False, False]  # a rate that diverges bounds the search
    held = json.loads((tmp_path / "rates.json").read_text())
    assert held["random"]["0.002"] == {"macro": 1.5, "best": True}
    assert held["colm"]["0.004"] == {"macro": None, "best": False}
    lines = list(describe_rates(found))
    assert lines[0] == "random: learning rate 0.002 (macro loss by rate 0.001: 2.0000, 0.002: 1.5000, 0.004: 1.8000)"


def test_the_best_of_the_rates_tried_may_be_the_last(tmp_path: Path) -> None:
    found = find_rates(tmp_path, write_search(tmp_path, {"random": {1e-3: 2.0, 2e-3: 1.5}}))
    assert "the best is the largest one tried, so try others beyond it" in next(describe_rates(found))
    write_search(tmp_path, {"random": {8e-3: 0.1}}, steps=50)
    write_search(tmp_path, {"random": {5e-4: 0.1}}, digest="2")
    found = find_rates(tmp_path, write_search(tmp_path, {"random": {4e-3: 1.7}}))  # tried later
    assert list(found["random"].losses) == [1e-3, 2e-3, 4e-3]  # without those of a longer run and of other data
    assert (found["random"].best, found["random"].at_end) == (2e-3, False)


def test_a_method_that_diverges_with_every_rate_is_refused(tmp_path: Path) -> None:
    search = write_search(tmp_path, {"random": {1e-3: math.nan, 2e-3: math.inf}})
    with pytest.raises(ConfigError, match=r"'random' has no finite macro loss with the learning rates 0\.001, 0\.002"):
        find_rates(tmp_path, search)


def test_a_seed_that_counts_cannot_choose_rates() -> None:
    with pytest.raises(ConfigError, match="--rates-seed 1 is among --seeds"):
        free_seed([0, 1], 1)
