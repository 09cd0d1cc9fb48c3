"""A run without padding keeps the same rows and has the same losses."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.commands import write_run
from tests.support.files import read_lines

from colm.lab.cli import main


def test_a_run_without_padding(tmp_path: Path) -> None:
    kept, losses = [], []
    for free in ("false", "true"):
        config = write_run(tmp_path / free)
        assert main(["train", config, f"selection.padding_free={free}", "training.max_steps=2"]) == 0
        run = tmp_path / free / "run"
        kept.append([line["kept"] for line in read_lines(run / "selection.jsonl")])
        losses.append([line["losses"] for line in read_lines(run / "evaluations.jsonl")])
    assert kept[0] == kept[1]
    for padded, joined in zip(*losses, strict=True):
        assert joined == pytest.approx(padded, rel=1e-4)
