"""Metrics for the log do not depend on how often it is written, nor does their memory."""

from __future__ import annotations

import pytest
import torch

from colm.trainers.figures import SelectionFigures
from colm.types import StepRecord


def test_a_run_that_logs_nothing_holds_no_more_than_one_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    few, many = SelectionFigures(["a"], by_source=True), SelectionFigures(["a"], by_source=True)
    for step in range(5):
        losses, codes = torch.rand(4, generator=draw), torch.tensor([0, -1, 0, 0])
        rows = {"a": list(range(4))}
        record = StepRecord(step, rows, {"a": [0, 2, 3]}, {"a": 9}, 0, 0, 0, 0.5, match=step / 10, step_seconds=2.0)
        if step == 3:  # a stream shows another source
            codes = torch.tensor([0, -1, 1, 1])
            for figures in (few, many):
                figures.add_sources(["a", "b"])
        for figures, held in ((few, 2), (many, 1000)):
            monkeypatch.setattr("colm.trainers.figures.HELD", held)
            figures.add_losses(losses, codes)
            figures.add_step(record)
    assert len(few._losses) == 1
    logged = few.take_log()
    assert logged == pytest.approx(many.take_log(), rel=1e-5)
    assert logged["coreset_match"] == 0.2
    assert logged["selection_share"] == 0.25
    assert (logged["pool/a"], logged["kept/a"], logged["tokens/a"]) == (4, 3, 9)
    assert 0 < logged["loss/b"] < 1
    assert few.take_log() == {}
