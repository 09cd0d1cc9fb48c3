"""What is advised on measurements with a known answer."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colm.lab.probe.advice import BALANCED, LOSS_EXPONENT, Rule, advise, batch_times, best_random, interpolate
from colm.lab.probe.worth import Estimate

NOISE = Estimate(60.0, 3.0, 7)
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
    advice = advise(LINEAR, NOISE, [measured], 32)
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


def time_to(progress: float, rows: float, seconds: float, noise: float) -> float:
    """Train until a loss: a step of so many random rows makes rows / (rows + noise) of progress."""
    spent = made = 0.0
    while made < progress:
        made += rows / (rows + noise)
        spent += seconds
    return spent


@pytest.mark.parametrize("noise", [0.0, 5.0, 60.0, 1000.0])
@pytest.mark.parametrize(("kept", "worth", "cost"), [(8, 20.0, 0.1), (16, 16.0, 0.0), (32, 90.0, 2.0), (32, 9.0, 0.3)])
def test_the_gain_is_that_over_the_best_of_all_random_trainings(
    kept: int, worth: float, cost: float, noise: float
) -> None:
    seconds = {8: 0.5, 16: 0.6, 32: 1.3, 64: 3.0}
    random = min(time_to(2000, rows, interpolate(seconds, rows), noise) for rows in range(8, 65))
    by_loss = kept * (worth / kept) ** LOSS_EXPONENT
    own = time_to(2000, by_loss, seconds[kept] + cost, noise)
    found = Rule("matched", kept, 64, Estimate(worth, 1.0, 30), cost).gain(seconds, Estimate(noise, 1.0, 7))
    assert found.value == pytest.approx(random / own, rel=2e-3)


def test_numbers_of_rows_between_the_timed_ones_compete() -> None:
    assert best_random({10: 1.0, 40: 2.0}, 60) == (35, pytest.approx((1 + 60 / 35) * (1 + 25 / 30)))


def test_what_fewer_random_rows_bring_for_free_is_not_advised() -> None:
    """Eight rows that a rule keeps of a pool are far better than the configured 32, but so are 8 random ones."""
    few = Rule("matched", 8, 64, Estimate(9.0, 0.1, 14), 0.1)
    times = batch_times(LINEAR, NOISE.value)
    assert times[32] > 1.3
    advice = advise(LINEAR, NOISE, [few], 32)
    assert (advice.rows, advice.rule, advice.pool) == (8, None, None)
    assert "without a selection pass (matched, 8 of 64 takes 1.07 of the time of random rows" in advice.sentence


def test_the_best_of_several_choices_is_advised() -> None:
    rules = [
        Rule("matched", 32, 64, Estimate(60.0, 1.0, 14), 0.1),
        Rule("matched", 8, 64, Estimate(40.0, 1.0, 14), 0.1),
        Rule("matched", 8, 32, Estimate(20.0, 1.0, 14), 0.05),
        Rule(BALANCED, 8, 8, Estimate(10.0, 0.5, 14), 0.0),
    ]
    advice = advise(LINEAR, NOISE, rules, 32)
    assert (advice.rows, advice.rule, advice.pool) == (8, "matched", 64)
    gain = rules[1].gain(LINEAR, NOISE).value
    slower = batch_times(LINEAR, NOISE.value)[32]
    assert advice.sentence == (
        f"Train 8 rows a step, of pools of 64, with matched (random rows take {gain:.2f} times as long to the same "
        f"loss with 8 a step, the best number, and {gain * slower:.2f} times with 32)."
    )
    assert advise(LINEAR, NOISE, rules[3:], 8).sentence.endswith("loss with 8 a step, the best number).")


def test_of_rules_that_pay_a_clear_one_goes_before_a_lucky_one() -> None:
    lucky = Rule("matched", 8, 64, Estimate(60.0, 14.0, 4), 0.0)
    clear = Rule("colm", 8, 32, Estimate(50.0, 0.5, 14), 0.0)
    assert lucky.gain(LINEAR, NOISE).value > clear.gain(LINEAR, NOISE).value
    assert advise(LINEAR, NOISE, [lucky, clear], 8).rule == "colm"


def test_without_a_noise_scale_only_the_configured_rows_compete() -> None:
    other = Rule("matched", 8, 64, Estimate(1000.0, 1.0, 14), 0.0)
    assert advise(LINEAR, None, [other], 32).rule is None
    assert advise(LINEAR, None, [other], 8).rule == "matched"


def test_an_unclear_noise_scale_makes_the_gain_of_another_number_of_rows_unclear() -> None:
    free = Rule(BALANCED, 32, 32, Estimate(300.0, 1.0, 14), 0.0)
    clear, unclear = (free.gain(LINEAR, NOISE._replace(error=error)) for error in (1.0, 60.0))
    assert clear.value == unclear.value
    assert clear.low > 1.2
    assert unclear.low < 1.0


@pytest.mark.parametrize("error", [1.0, 60.0, 1e9])
def test_a_free_gain_with_the_best_number_of_rows_does_not_depend_on_the_noise_scale(error: float) -> None:
    noise = NOISE._replace(error=error)
    for worth, pays in ((10.0, True), (8.1, False)):
        free = Rule(BALANCED, 8, 8, Estimate(worth, 0.5, 14), 0.0)
        assert (advise(LINEAR, noise, [free], 32).rule == BALANCED) is pays


def test_a_rule_must_also_beat_as_many_random_rows_if_the_noise_scale_is_lower() -> None:
    """At half the noise scale, 8 random rows would be as good as the rule; at the measured one, 16 are better."""
    seconds, rule = {8: 1.0, 16: 1.4}, Rule("matched", 8, 64, Estimate(16.0, 1e-6, 14), 0.25)
    assert best_random(seconds, 60.0)[0] == 16
    found = rule.gain(seconds, Estimate(60.0, 20.0, 7))
    at = {scale: (1 + scale / (8 * 2**LOSS_EXPONENT)) * 1.25 for scale in (60.0, 60.0 / 2.2)}
    assert found.value == pytest.approx((1 + 60 / 16) * 1.4 / at[60.0])
    assert found.low < min(1.4 * (1 + 27.3 / 16), 1 + 27.3 / 8) / at[60.0 / 2.2] + 0.01


sizes = st.dictionaries(st.integers(1, 200), st.floats(1e-3, 10.0), min_size=1, max_size=5)
scales = st.floats(0.0, 1e6)


@given(sizes, scales, st.floats(0.0, 10.0), st.data())
def test_a_rule_that_is_worth_its_rows_gains_nothing(
    seconds: dict[int, float], noise: float, cost: float, data: st.DataObject
) -> None:
    kept = data.draw(st.sampled_from(sorted(seconds)))
    rule = Rule("control", kept, 400, Estimate(kept, 1e-9, 14), cost)
    assert rule.gain(seconds, Estimate(noise, 1.0, 7)).value <= 1 + 1e-9
    assert best_random(seconds, noise)[1] <= (1 + noise / kept) * seconds[kept] * (1 + 1e-9)


@given(sizes, scales, st.floats(0.0, 500.0), st.floats(0.0, 100.0), st.data())
def test_a_gain_is_finite_and_grows_with_the_worth(
    seconds: dict[int, float], noise: float, worth: float, error: float, data: st.DataObject
) -> None:
    kept = data.draw(st.sampled_from(sorted(seconds)))
    less, more = (
        Rule("colm", kept, 400, Estimate(each, error, 3), 0.1).gain(seconds, Estimate(noise, error, 7))
        for each in (worth, worth + 10)
    )
    assert 0 < less.value <= more.value < inf
    assert less.error is not None
    assert 0 <= less.error < inf
