from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colm.config import SelectionConfig
from colm.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep": 0.0}, "keep=0.0 must be a number above 0 and at most 1; use keep_count"),
        ({"keep": 1.5}, "keep=1.5 must be a number above 0 and at most 1; use keep_count"),
        ({"keep": True}, "keep=True must be a number above 0"),
        ({"keep_count": 0}, "keep_count=0 must be a whole number of at least 1"),
        ({"keep": 0.5, "keep_count": 4}, "keep=0.5 and keep_count=4 are both set; set exactly one"),
        ({"features": "exakt"}, "features='exakt' is not one of 'exact', 'spsa', .*'none'. Did you mean 'exact'"),
        ({"metric": "l3"}, "metric='l3' is not one of"),
        ({"loss": "mean"}, "loss='mean' is not one of 'example', 'token'"),
        ({"small_sources": "some"}, "small_sources is 'some'; it must be 'auto', 'none', or a list of source names"),
        ({"small_sources": None}, "small_sources is None; it must be 'auto', 'none', or a list of source names"),
        ({"small_sources": 1}, "small_sources is 1; it must be 'auto', 'none', or a list of source names"),
        ({"small_sources": ["a", None]}, r"small_sources\[1\] names the source None; it must be a non-blank string"),
        ({"coordinates": 0}, "coordinates=0 must be a whole number of at least 1"),
        ({"coordinates": None}, "coordinates=None must be a whole number of at least 1"),
        ({"spsa_probes": 0}, "spsa_probes=0"),
        ({"spsa_eps": 0.0}, "spsa_eps=0.0 must be a number above 0"),
        ({"spsa_directions": "new"}, "spsa_directions='new' is not one of 'fresh', 'fixed'"),
        ({"pass_tokens": 0}, "pass_tokens=0"),
        ({"pass_labels": 0}, "pass_labels=0 must be a whole number of at least 1"),
        ({"pass_dtype": "float32"}, "pass_dtype='float32' is not one of 'bfloat16', 'float16'"),
        ({"pass_dtype": "bfloat16", "features": "spsa"}, "pass_dtype='bfloat16' is too coarse"),
        ({"pass_labels": 4, "reuse_forward": True}, "reuse_forward=True .* pass_labels=4 makes it another one"),
        ({"pass_dtype": "bfloat16", "reuse_forward": True}, "pass_dtype='bfloat16' makes it another one"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be a whole number of at least 0"),
        ({"every": 0}, "every=0 must be a whole number of at least 1"),
        ({"log_sources": 1}, "log_sources=1 must be true or false"),
        ({"keep_schedule": 0.5}, r"keep_schedule is 0.5; it must be a list of \[step, keep\], such as"),
        ({"keep_schedule": [[0, 0.0]]}, r"keep_schedule\[0\]\[1\]=0.0 must be a number above 0 and at most 1"),
        ({"keep_schedule": [[5, 0.5], [5, 0.25]]}, "must have increasing steps"),
        ({"keep_schedule": [[0.5, 0.5]]}, r"keep_schedule\[0\]\[0\]=0.5 must be a whole number of at least 0"),
        ({"keep_schedule": [[0, 0.5]], "keep": 0.5}, "keep_schedule and keep=0.5 .* are both set"),
        ({"seed": -1}, "seed=-1 must be a whole number of at least 0"),
        ({"pick": "best"}, "pick='best' is not one of 'medoids', 'largest'"),
        ({"weights": "even"}, "weights='even' is not one of 'uniform', 'represented'"),
        ({"adam": "maybe"}, "adam='maybe' must be true or false"),
        ({"by_source": 1}, "by_source=1 must be true or false"),
        ({"features": "none", "pick": "largest"}, "pick='largest' needs features to pick by"),
        (
            {"weights": "represented", "loss": "token"},
            "weights='represented' and balance=0.0 weigh examples.*use loss='example'",
        ),
        ({"balance": 0.5, "loss": "token"}, "weights='uniform' and balance=0.5 weigh examples.*use loss='example'"),
        ({"balance": -1}, "balance=-1 must be a number of at least 0 and at most 1"),
        ({"weights": "fitted"}, "needs features='exact' .* and shorten='sketch'; they are 'exact' and 'largest'"),
        (
            {"weights": "fitted", "shorten": "sketch", "pick": "largest", "features": "loss"},
            "they are 'loss' and 'sketch'",
        ),
        ({"shorten": "sketch"}, "keeps inner products, not l1 distances: use metric='l2'"),
        ({"carry": 1.5}, "carry=1.5 must be a number of at least 0 and at most 1"),
        (
            {"carry": 0.5, "pick": "direction", "shorten": "sketch"},
            "carry=0.5 needs .* they are 'direction', 'sketch' and True",
        ),
        ({"order": "balanced"}, "order='balanced' .* needs features='none' .* they are 'exact' and keep=0.5"),
        ({"order": "balanced", "keep_count": 8}, "or keep=1.0; they are 'exact' and keep_count=8"),
        ({"order": "balanced", "keep_schedule": [[0, 1.0]]}, "or keep=1.0; they are 'exact' and a keep_schedule"),
        ({"order": "sorted"}, "order='sorted' is not one of 'random', 'balanced'"),
        ({"order_by": "token"}, "order_by is 'token'; it must be 'tokens', 'sources', or a .npy or .parquet file"),
        ({"shorten": "half"}, "shorten='half' is not one of 'largest', 'sketch'"),
        ({"preset": "paper"}, "preset='paper' is not one of 'colm', 'colm-spsa', 'matched', 'control'"),
        ({"kep": 0.5}, "Unknown selection setting 'kep'. Did you mean 'keep'"),
    ],
)
def test_bad_values_say_what_is_allowed(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SelectionConfig.from_dict(values)


def test_there_and_back() -> None:
    config = SelectionConfig(keep_count=3, small_sources=("a", "b"), warmup_steps=2, every=3)
    assert SelectionConfig.from_dict(config.to_dict()) == config
    assert SelectionConfig().keep == 0.5


@given(st.integers(1, 200), st.integers(1, 20), st.floats(0.01, 1.0))
def test_kept_rows_stay_within_slots_and_pool(rows: int, slots: int, keep: float) -> None:
    kept = SelectionConfig(keep=keep).kept_rows(rows, slots)
    assert min(slots, rows) <= kept <= rows
    if slots <= round(keep * rows):
        assert kept == round(keep * rows)


def test_a_schedule_goes_in_straight_lines_between_its_points() -> None:
    config = SelectionConfig.from_dict({"keep_schedule": [[2, 1.0], [6, 0.5], [10, 0.25]]})
    assert [config.kept_rows(100, 4, step=step) for step in (0, 2, 3, 6, 8, 10, 99)] == [100, 100, 88, 50, 38, 25, 25]
    assert SelectionConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="A pool of 8 rows keeps 2, fewer than its 4 micro-batches"):
        config.check_pool(8, 4)
    config.check_pool(8, 2)


def test_a_pool_that_can_not_fill_its_micro_batches_is_refused() -> None:
    with pytest.raises(ConfigError, match="keep_count=9 is above the pool of 8 rows"):
        SelectionConfig(keep_count=9).check_pool(8, 2)
    with pytest.raises(ConfigError, match="A pool of 8 rows keeps 2, fewer than its 4 micro-batches"):
        SelectionConfig(keep=0.25).check_pool(8, 4)
    SelectionConfig(keep=0.5).check_pool(8, 4)


@pytest.mark.parametrize("features", ["loss", "gradient_norm"])
def test_cosine_between_positive_numbers_is_refused(features: Any) -> None:
    with pytest.raises(ConfigError, match=rf"metric='cosine' is always 0.*features='{features}'; use 'l1'"):
        SelectionConfig(features=features, metric="cosine")


def test_a_preset_is_a_start_that_other_settings_change() -> None:
    assert SelectionConfig.from_dict({"preset": "colm"}) == SelectionConfig()
    paper = SelectionConfig.from_dict({"preset": "colm-spsa", "spsa_probes": 4})
    assert (paper.features, paper.spsa_directions, paper.spsa_probes) == ("spsa", "fixed", 4)
    assert SelectionConfig.from_dict({"preset": "control"}).features == "none"
