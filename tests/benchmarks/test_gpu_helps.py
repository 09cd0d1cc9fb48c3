"""The order, the pace, the rows and the page of the GPU suite's part "does it help"."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
import helps
import helps_page
import helps_rows
from helps_cells import interpolate

from colm.losses import example_losses
from colm.models import tiny_config


def line(name: str, seed: int, losses: list[float], *, step: float = 1.0, pools: str | None = "a") -> dict[str, Any]:
    evaluations = [
        {"step": at, "seconds": at * step, "losses": {"x": loss, "y": loss + 1}}
        for at, loss in enumerate(losses, start=1)
    ]
    costs = {
        "selection_seconds": 0.5 * step,
        "peak_gib": None,
        "match": None,
        "match_random": None,
        "rows": 8,
        "order_seconds": None,
    }
    held = {"method": name, "card": "c", "steps": len(losses), "seconds": len(losses) * step, "rate": 1e-3, "kept": 4}
    ends = {"pool": 16, "pools": pools, "init": "i", "evaluations": evaluations}
    return {"unit": f"seed {seed}/{name}", "name": name, "seed": seed, **held, **costs, **ends}


def test_every_run_comes_once_and_two_seeds_of_the_first_group_come_first() -> None:
    for seeds in (1, 2, 5):
        groups = [group for group in helps.order(seeds) if group is not None]
        runs = [(name, seed) for methods, seed in groups for name in methods]
        assert sorted(runs) == sorted((name, seed) for name in helps.METHODS for seed in range(seeds))
    assert [(methods is helps.FIRST, seed) for methods, seed in groups[:3]] == [(True, 0), (True, 1), (False, 0)]


def test_the_pace_of_a_method_is_its_own_or_that_of_others() -> None:
    pace = helps.Pace(100)
    guesses = {name: pace.seconds(name) for name in ("random", "pool")}
    pace.add("random", guesses["random"] / 2)
    assert pace.seconds("random") == pytest.approx(1.1 * guesses["random"] / 2)
    assert pace.seconds("pool") == pytest.approx(guesses["pool"] / 2)


def test_row_losses_are_those_of_whole_masked_logits() -> None:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config(32, pad_token_id=0, eos_token_id=1))
    rows = [
        {
            "input_ids": list(range(2, 2 + n)),
            "labels": [-100] * (n // 2) + list(range(2 + n // 2, 2 + n)),
            "source": "x",
        }
        for n in (4, 9, 6)
    ]
    batches = helps_rows.make_batches(rows, 2, pad=0)
    assert [len(batch.sources) for batch in batches] == [2, 1]
    batch = batches[0]
    with torch.no_grad():
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
        torch.testing.assert_close(helps_rows.row_losses(model, batch), example_losses(logits, batch.labels))


def test_a_curve_is_read_between_its_points_and_at_its_end() -> None:
    assert interpolate([0.0, 2.0, 4.0], [5.0, 3.0, 2.0], 3.0) == 2.5
    assert interpolate([0.0, 2.0], [5.0, 3.0], 9.0) == 3.0


def test_section_pairs_by_seed_at_equal_steps_and_at_equal_time() -> None:
    base = {"unit": "base", "losses": {"x": 4.0, "y": 5.0}, "apart": 0.0}
    lines = [base]
    for seed in (0, 1):
        lines += [line("control", seed, [3.0, 2.0]), line("matched", seed, [2.8, 1.7 + seed / 10], step=2.0)]
    text = helps_page.write_section(lines)
    assert helps_page.RED not in text
    steps, time = text.split("### At equal time")
    matched = next(row for row in steps.splitlines() if row.startswith("| matched"))
    assert "-0.2500 ± 0.6353" in matched
    matched = next(row for row in time.splitlines() if row.startswith("| matched"))
    assert "| 3.3000 ± 0.0000 | - | +0.8000 ± 0.0000 * |" in matched  # after 2 s, its first step of two


def test_section_shows_faults_and_pairs_that_are_none() -> None:
    assert helps_page.RED in helps_page.write_section([])
    lines = [line("control", 0, [3.0, 2.0]), line("matched", 0, [2.8, 1.7], pools="b")]
    assert f"{helps_page.RED} Runs of seed 0 had different pools" in helps_page.write_section(lines)
    text = helps_page.write_section([*lines, {"unit": "seed 0/matched", "fault": "it went | wrong"}])
    assert f"{helps_page.RED} seed 0/matched: it went \\| wrong" in text
    assert "different pools" not in text


def test_section_says_how_soon_the_plain_trainer_s_loss_is_reached() -> None:
    lines = [{"unit": "setting", "rows": {"x": 3, "y": 1}}]
    for seed in (0, 1):
        lines += [line("plain", seed, [3.0, 2.0, 2.0], pools=None), line("control", seed, [2.5, 1.5 + seed])]
    text = helps_page.write_section(lines)
    assert helps_page.RED not in text  # orders of their own are not pairs
    sooner = next(part for part in text.split("### ") if part.startswith("Sooner than the plain Trainer"))
    (row,) = (each for each in sooner.splitlines() if each.startswith("| control"))
    assert row.startswith("| control | 4 | 2 | 0.50 (1 of 2 seeds reach it) | 1.00 ± 0.00 | +0.0000 ± ")
    assert "Its runs took 3.0 s on average" in sooner
    assert "no loss to reach" in helps_page.write_section(lines[2:3])


def test_every_method_can_be_made_and_trains_its_share() -> None:
    for name, method in helps.METHODS.items():
        run = helps.Run(name, method.method, method.share, 1e-3, 0, 0)
        if name != "plain":
            assert run.selection.kept_rows(helps.GPU.pool, 1) == run.rows(helps.GPU)
            assert (run.selection.order == "balanced") == ("ordered" in name)
