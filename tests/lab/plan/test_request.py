"""What a run's settings ask to plan."""

from __future__ import annotations

from colm.lab.plan.request import make_request
from colm.lab.run.settings import resolve_settings


def test_a_fused_head_is_planned_in_chunks_without_its_package() -> None:
    found = [
        make_request(
            resolve_settings(
                {
                    "model": "tiny",
                    "output_dir": "out",
                    "data": {"train": "demo"},
                    "selection": {"train_head": head, "reuse_forward": True},
                    "training": {"gradient_checkpointing": True},
                }
            )
        )
        for head in ("fused", "chunked")
    ]
    assert found[0] == found[1]
    assert found[0].selection.train_head == "chunked"
    assert not found[0].selection.reuse_forward
