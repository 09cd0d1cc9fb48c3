"""Between the selection pass and the coreset the host waits for the GPU a few times, whatever the budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.gpu.support import DEVICE, SIZES, on, pool_of, ragged_batch, tiny_model
from tests.gpu.syncs import counted
from tests.gpu.training import make_trainer

from colm import CoresetSelector, LeanHead, SelectionConfig
from colm.select.direction import match_direction
from colm.select.facility import facility_location, medoids_of_distances, pairwise_distances
from colm.select.weighting import fit_weights
from colm.trainers.preemption import StopOnSignal

pytestmark = pytest.mark.gpu

ALLOWED = {
    "picking.pick_from_features": "which rows are finite decides the groups and their quotas; fitted weights",
    "picking._read": "the picks of all groups and what they stand for, at once: the result",
    "picking.cosines": "the two cosines of the record, at once",
    "select.sampling.sample_by_size": "sizes of a group's rows, for the host's generator; once a group",
}
"""Places where the host may wait for a GPU, and why."""

ON_THE_HOST = {
    "features.factors._gather": "numbers of rows, which never leave the host",
    "select.sampling.sample_by_size": "draws, which are the host's",
    "select.sampling.inclusion_chances": "chances, which are computed on the host",
    "choosing._weigh": "weights of the coreset, which is on the host",
    "choosing.record": "the coreset, which is on the host",
    "picking.pick_at_random": "draws, which are the host's",
    "select.weighting.weigh_picks": "weights of the coreset, which is on the host",
}
"""Places that the rehearsal counts, since all its tensors are the host's. On a GPU they may not appear."""

OF_FETCHING = ("step.pool_info", "picking", "select.sampling", "selector", "choosing")
"""Modules whose draws, coreset and table of a single process are on the host, as `ON_THE_HOST`."""

CASES: dict[str, dict[str, Any]] = {
    "colm": {},
    "colm of few coordinates": {"coordinates": 100},
    "cosine": {"metric": "cosine"},
    "represented": {"weights": "represented"},
    "balance": {"balance": 1.0, "small_sources": "none"},
    "direction": {"pick": "direction"},
    "largest": {"pick": "largest"},
    "middle": {"pick": "middle"},
    "sample": {"pick": "sample"},
    "matched": {"preset": "matched"},
    "matched, a sketch": {"preset": "matched", "coordinates": 100},
    "colm-spsa": {"preset": "colm-spsa"},
}


def waits_of_a_step(settings: dict[str, Any], budget: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return where the host waits between the end of the second step's selection pass and the coreset."""
    from colm import choosing as module

    model = tiny_model(layers=2).to(DEVICE)
    chooser = CoresetSelector(model, SelectionConfig.from_dict({**settings, "keep_count": budget}), SIZES)
    begin: list[Any] = []
    original = module.run_selection_pass

    def then_count(*args: Any, **kwargs: Any) -> Any:
        features = original(*args, **kwargs)
        if begin:
            begin[0].__enter__()
        return features

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_selection_pass", then_count)
        for step in range(2):  # the first step loads kernels and has no history
            batches, sources = pool_of(5)
            pool = on(DEVICE, batches)
            if step == 1:
                context = counted(DEVICE)
                begin.append(_Once(context))
            chooser.select(pool, sources)
            if step == 1:
                begin[0].__exit__()
            chooser.commit()
    found: Counter[str] = begin[0].found
    return found


class _Once:
    """A context entered in the middle of a call and exited after it."""

    def __init__(self, context: Any) -> None:
        self.context, self.found = context, Counter[str]()

    def __enter__(self) -> None:
        self.found = self.context.__enter__()

    def __exit__(self, *args: Any) -> None:
        self.context.__exit__(None, None, None)


@pytest.mark.parametrize("name", CASES)
def test_waits_do_not_grow_with_the_budget(
    name: str, monkeypatch: pytest.MonkeyPatch, measured: Callable[..., None]
) -> None:
    few, many = (
        {
            place: count
            for place, count in waits_of_a_step(CASES[name], budget, monkeypatch).items()
            if DEVICE.type == "cuda" or place in ALLOWED or place not in ON_THE_HOST
        }
        for budget in (8, 20)
    )
    places = ", ".join(f"{place} {count}" for place, count in sorted(many.items()))
    measured(waits=sum(many.values()), places=places)
    assert few == many
    assert set(many) <= set(ALLOWED)


def test_no_wait_for_a_pool_that_workers_prepared(tmp_path: Path, measured: Callable[..., None]) -> None:
    """Fetching a pool, drawing rows of it and taking them leaves the host free while the GPU ends the last step."""
    cuda = DEVICE.type == "cuda"
    trainer = make_trainer(
        tmp_path,
        selection=SelectionConfig(features="none"),
        dataloader_num_workers=1,
        dataloader_pin_memory=cuda,
        accelerator_config={"non_blocking": cuda},
    )
    trainer.state.max_steps = 2
    trainer.start_afresh()
    batches = iter(trainer.get_train_dataloader())
    trainer.get_batch_samples(batches, 3, DEVICE)  # kernels are loaded
    with counted(DEVICE) as found:
        kept, _ = trainer.get_batch_samples(batches, 3, DEVICE)
    assert len(kept) == 3
    places = {place: count for place, count in found.items() if cuda or not place.startswith(OF_FETCHING)}
    measured(waits=sum(places.values()), places=", ".join(places))
    assert not places


@pytest.mark.parametrize("chunk", [None, 20], ids=["at once", "in chunks"])
def test_a_lean_step_waits_once_for_the_number_of_labels(chunk: int | None, measured: Callable[..., None]) -> None:
    model = tiny_model().to(DEVICE).train()
    head = LeanHead(model, chunk_tokens=chunk)
    batch = on(DEVICE, ragged_batch([13, 5, 24, 9]))
    head(model, batch).mean().backward()  # kernels are loaded
    with counted(DEVICE) as found:
        head(model, batch).mean().backward()
    measured(waits=sum(found.values()), places=", ".join(found))
    not_ours = ("lean.__call__", "elsewhere")  # transformers looks whether a mask is needed
    assert {place: count for place, count in found.items() if place not in not_ours} == {"losses.find_labelled": 1}


def test_no_wait_for_a_signal_in_one_process(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    stop = StopOnSignal()
    with counted(DEVICE) as found:
        stop.on_step_end(trainer.args, trainer.state, trainer.control)
    assert not found
    assert not stop.stopped


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_no_wait_for_any_medoid(metric: str) -> None:
    x = torch.randn(80, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    facility_location(x, 3, metric)
    with counted(DEVICE) as found:
        medoids_of_distances(pairwise_distances(x, metric), 40)
    assert not found


def test_no_wait_for_any_match() -> None:
    x = torch.randn(80, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    goal = x.sum(0) + 1.0
    fit_weights(x[match_direction(x, 3, goal)], goal)
    with counted(DEVICE) as found:
        fit_weights(x[match_direction(x, 40, goal)], goal)
    assert not found


def test_the_count_detects_a_wait() -> None:
    """What is counted is there: a mask, and a number that the host reads."""
    x = torch.arange(5.0).to(DEVICE)
    assert float(x[x > 1].sum()) == 9.0  # kernels are loaded
    with counted(DEVICE) as found:
        x[x > 1].sum().item()
    assert found["elsewhere"] >= 2
