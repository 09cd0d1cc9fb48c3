"""What is advised on measurements with a known answer."""

from __future__ import annotations

import pytest

from colm.lab.probe.advice import LOSS_EXPONENT, Rule, advise, batch_times, interpolate
from colm.lab.probe.worth import Estimate

LINEAR = {8: 0.8, 16: 1.6, 32: 3.2, 64: 6.4}


def test_seconds_are_linear_between_and_beyond_sizes() -> None:
    assert interpolate(LINEAR, 24) == pytest.approx(2.4)
    assert interpolate(LINEAR, 128) == pytest.approx(12.8)
    assert interpolate({16: 2.0}, 8) == pytest.approx(1.0)
    assert interpolate({8: 1.0, 16: 1.1}, 1) > 0


def test_where_time_is_that_of_rows_the_smallest_batch_is_fastest() -> None:
    times = batch_times(LINEAR, 50.0)
    assert times[8] == 1
    assert times[64] == pytest.approx((64 + 50) / (8 + 50))


def test_where_a_step_takes_as_long_whatever_its_rows_the_largest_is_fastest() -> None:
    assert min(batch_times(dict.fromkeys(LINEAR, 1.0), 50.0).items(), key=lambda pair: pair[1])[0] == 64


def rule(worth: float, seconds: float, error: float = 1.0, name: str = "matched") -> Rule:
    return Rule(name, 32, 64, Estimate(worth, error, 30), seconds)


def test_a_rule_is_worth_less_in_the_loss() -> None:
    found = rule(64, 0.0, error=4.0).in_loss()
    assert found.value == pytest.approx(32 * 2**LOSS_EXPONENT)
    assert found.error == pytest.approx(4.0 * LOSS_EXPONENT * found.value / 64)


def test_a_rule_that_saves_more_than_it_costs_is_advised() -> None:
    advice = advise(LINEAR, None, [rule(120, 0.1), rule(34, 0.0, name="control")], 32)
    assert advice.rule == "matched"
    assert "with matched" in advice.sentence
    assert advice.rows == 32


@pytest.mark.parametrize("measured", [rule(50, 2.0), rule(120, 0.1, error=300.0), rule(33, 0.0), rule(36, 0.01)])
def test_a_rule_that_costs_more_or_is_not_clear_is_not(measured: Rule) -> None:
    advice = advise(LINEAR, 60.0, [measured], 32)
    assert advice.rule is None
    assert advice.rows == 8
    assert advice.sentence.startswith("Train 8 rows a step (32 take 1.35 times as long to the same loss), ")


def test_a_free_rule_is_advised_if_it_is_better_at_all() -> None:
    advice = advise(LINEAR, None, [rule(36, 0.0, name="balanced order")], 32)
    assert advice.rule == "balanced order"
    assert "in balanced order (random rows take 1.06 times as long" in advice.sentence


def test_a_rule_without_an_interval_is_not_advised() -> None:
    unknown = Rule("control", 32, 64, Estimate(60, None), 0.0)
    assert advise(LINEAR, None, [unknown], 32).rule is None


def test_without_rules_and_noise_scale_nothing_changes() -> None:
    advice = advise(LINEAR, None, [], 16)
    assert advice.rows == 16
    assert advice.rule is None
    assert "not clear" in advice.sentence
