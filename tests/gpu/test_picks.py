"""The same features give the same picks, quotas and history on a GPU as on a CPU, in float32, over several steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from tests.gpu.support import under_test
from torch import Tensor

from colm.config_parts import Pick
from colm.features.adam import AdamConstants, empty_history
from colm.features.factors import GradientPiece, PieceFeatures
from colm.picking import Candidates, Picks, Scale, pick_from_features
from colm.select.facility import FOLLOW, facility_location
from colm.step.pool_info import PoolFacts
from colm.types import AdamHistory

pytestmark = pytest.mark.gpu

ROWS, OUT, IN, TOKENS, STEPS = 60, 16, 64, 6, 5
CPU = torch.device("cpu")
ADAM = AdamConstants(0.9, 0.999, 1e-8)
MATCHED = {"by": "direction", "by_source": False, "shorten": "sketch", "weights": "fitted", "carry": 0.95}

NEAR = 1e-6
"""A relative change of the features that must not change the picks on the CPU: a GPU sums in another order, so
decisions must not be close. Gains within 1e-5 are ties by definition, and the lower row wins on both."""


DRAWS = 3
TOO_CLOSE = "the test's own rows are too close to decide: change their seed"


class Case(NamedTuple):
    rule: dict[str, Any]
    adam: bool = True
    balance: bool = False


CASES = {
    "medoids l1": Case({"coordinates": 200}),
    "medoids l1, all coordinates": Case({}, adam=False),
    "medoids l2": Case({"metric": "l2", "coordinates": 200}),
    "medoids cosine": Case({"metric": "cosine", "coordinates": 200}),
    "medoids of all sources as one": Case({"by_source": False, "coordinates": 200}),
    "medoids of sketches": Case({"metric": "l2", "shorten": "sketch", "coordinates": 200}, adam=False),
    "medoids, balanced": Case({"coordinates": 200}, balance=True),
    "largest": Case({"by": "largest"}, adam=False),
    "middle": Case({"by": "middle"}, adam=False),
    "direction": Case({"by": "direction", "coordinates": 200}),
    "sample": Case({"by": "sample"}, adam=False),
    "matched": Case({**MATCHED, "coordinates": 200}, adam=False),
    "matched, balanced": Case({**MATCHED, "coordinates": 200}, adam=False, balance=True),
}


def make_features(step: int, device: torch.device, noise: float) -> PieceFeatures:
    """Make rows of three micro-batches, one of them stored as factors; all rows share a component."""
    draw = torch.Generator().manual_seed(step)
    delta = torch.randn(ROWS, TOKENS, OUT, generator=draw)
    inputs = torch.randn(ROWS, TOKENS, IN, generator=draw) + 0.5 * torch.randn(1, 1, IN, generator=draw)
    delta = delta + 0.3 * torch.randn(1, 1, OUT, generator=draw)
    delta = delta * (1 + noise * torch.randn(delta.shape))
    order = torch.randperm(ROWS, generator=draw).tolist()
    positions = [order[:25], order[25:40], order[40:]]
    pieces = []
    for number, held in enumerate(positions):
        parts = delta[held].to(device), inputs[held].to(device)
        whole = torch.einsum("nto,nti->noi", delta[held], inputs[held]).flatten(1).to(device)
        pieces.append(GradientPiece(None, *parts) if number == 1 else GradientPiece(whole, None, None))
    return PieceFeatures(pieces, positions, OUT * IN, device)


def run(case: Case, device: torch.device, noise: float = 0.0) -> tuple[list[Picks], AdamHistory, Tensor | None]:
    """Pick in several steps, each with the history and residual of the previous steps."""
    sources = ["abbc"[i % 4] for i in range(ROWS)]
    facts = PoolFacts(sources, list(range(ROWS)), [1] * ROWS, [1] * ROWS, slots=1, rows_by_rank=[ROWS], rank=0)
    importance = {p: {"a": 1.5, "b": 0.75, "c": 1.0}[sources[p]] for p in range(ROWS)} if case.balance else None
    history, carried, found = empty_history(OUT * IN, device), None, []
    for step in range(STEPS):
        picks = pick_from_features(
            make_features(step, device, noise),
            Candidates(list(range(ROWS)), 18 + step, facts, step, torch.Generator().manual_seed(step), importance),
            Pick(**case.rule),
            Scale(history, ADAM if case.adam else None),
            carried,
        )
        found.append(picks)
        history = picks.history or history
        carried = carried if picks.carried is None else picks.carried
    return found, history, carried


@pytest.mark.parametrize("name", CASES)
def test_picks_are_those_of_the_cpu(name: str, measured: Callable[..., None]) -> None:
    case = CASES[name]
    expected, history, carried = run(case, CPU)
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        near, _, _ = run(case, CPU, NEAR)
        assert [p.positions for p in near] == [p.positions for p in expected], TOO_CLOSE
    with under_test() as device:
        found, history_found, carried_found = run(case, device)
    assert [p.positions for p in found] == [p.positions for p in expected]  # in the order of picking
    errors = {"history": 0.0, "carried": 0.0, "stands for": 0.0, "match": 0.0}
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.nonfinite == theirs.nonfinite == []
        pairs = zip(ours.stands_for, theirs.stands_for, strict=True)
        errors["stands for"] = max(errors["stands for"], *(abs(a - b) / (1 + abs(b)) for a, b in pairs))
        for a, b in ((ours.match, theirs.match), (ours.match_random, theirs.match_random)):
            assert a is not None
            assert b is not None
            errors["match"] = max(errors["match"], abs(a - b))
    for a, b in ((history_found.m, history.m), (history_found.v, history.v)):
        if case.adam:
            errors["history"] = max(errors["history"], float((a.cpu() - b).abs().max() / b.abs().max()))
    assert history_found.updates == history.updates == (STEPS if case.adam else 0)
    assert (carried is None) == (carried_found is None)
    if carried is not None and carried_found is not None:
        errors["carried"] = float((carried_found.cpu() - carried).norm() / carried.norm())
    measured(**{f"error_of_{name.replace(' ', '_')}": value for name, value in errors.items()})
    # Sums of up to 60 float32 numbers in another order; the fit solves for weights in float64, but from such sums.
    assert errors["history"] < 1e-5
    assert errors["match"] < 1e-5
    assert errors["stands for"] < 1e-4
    assert errors["carried"] < 1e-4


def test_picks_of_a_large_pool(device: torch.device) -> None:
    """From `FOLLOW` rows on a CPU follows gains in float64, and a GPU recomputes them in float32."""
    x = torch.randn(FOLLOW + 100, 24, generator=torch.Generator().manual_seed(4))
    expected = facility_location(x, 300).tolist()
    for seed in range(DRAWS):
        torch.manual_seed(seed)
        assert facility_location(x * (1 + NEAR * torch.randn(x.shape)), 300).tolist() == expected, TOO_CLOSE
    assert facility_location(x.to(device), 300).tolist() == expected


def test_ties_go_to_the_lower_row(device: torch.device) -> None:
    """Whole numbers, which float32 sums exactly in any order: many ties, and identical picks."""
    for seed in range(20):
        x = torch.randint(0, 3, (40, 3), generator=torch.Generator().manual_seed(seed)).float()
        assert facility_location(x.to(device), 40).tolist() == facility_location(x, 40).tolist()
