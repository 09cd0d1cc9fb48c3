from __future__ import annotations

from typing import Any

import pytest

from colm.config import PRESETS, SelectionConfig
from colm.errors import ConfigError
from colm.lab.study.methods import METHODS, batch_methods, method_settings

BASE: dict[str, Any] = {
    "selection": SelectionConfig(keep=0.25, pass_tokens=512, small_sources=("rare",)).to_dict(),
    "data": {"weights": {}, "temperature": None},
    "training": {"gradient_accumulation_steps": 4, "max_steps": 10},
    "seed": 3,
}


def selection(name: str) -> dict[str, Any]:
    chosen: dict[str, Any] = method_settings(name, BASE)["selection"]
    return chosen


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_valid_selection_and_leaves_the_rest_as_configured(name: str) -> None:
    settings = method_settings(name, BASE)
    SelectionConfig.from_dict(settings["selection"])
    assert settings["selection"]["pass_tokens"] == 512
    assert settings["seed"] == 3
    assert settings["selection"]["keep"] == {"random-n": 1.0, "random-2n": 1.0, "growing": None}.get(name, 0.25)
    assert settings["training"]["gradient_accumulation_steps"] == (8 if name == "random-2n" else 4)
    assert BASE["selection"]["features"] == "exact"  # the base is not changed


def test_what_the_controls_do() -> None:
    assert (selection("control")["features"], selection("control")["small_sources"]) == ("none", ["rare"])
    random = selection("random")
    assert (random["features"], random["small_sources"], random["by_source"]) == ("none", "none", False)
    assert selection("colm") == BASE["selection"]


def test_a_name_means_the_same_whatever_is_configured() -> None:
    matched = {**BASE, "selection": SelectionConfig.from_dict({**BASE["selection"], **PRESETS["matched"]}).to_dict()}
    assert method_settings("matched", BASE) == method_settings("matched", matched)
    for name in METHODS:
        assert method_settings(name, matched) == method_settings(name, BASE)


@pytest.mark.parametrize(
    ("name", "micro_batch", "micro_batches", "kept"),
    [
        ("random+rows=8", 16, 1, 8),  # half of a pool of 16
        ("random+rows=2", 4, 1, 2),
        ("random+rows=24", 16, 3, 24),
        ("random-n+rows=8", 8, 1, 8),
        ("random-n+rows=24", 12, 2, 24),
        ("random-n+rows=17", 9, 2, 17),  # of 18
        ("colm+keep=0.3,rows=8", 14, 2, 8),
        ("colm+keep=0.25,rows=8", 16, 2, 8),
        ("colm+keep_count=16,rows=8", 16, 2, 8),  # of the configured pool of 64
    ],
)
def test_a_number_of_rows_sets_the_pool(name: str, micro_batch: int, micro_batches: int, kept: int) -> None:
    base = {**BASE, "selection": SelectionConfig().to_dict()}
    training = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4}
    settings = method_settings(name, {**base, "training": training})
    sizes = settings["training"]
    assert (sizes["per_device_train_batch_size"], sizes["gradient_accumulation_steps"]) == (micro_batch, micro_batches)
    assert SelectionConfig.from_dict(settings["selection"]).kept_rows(micro_batch * micro_batches, 1) == kept


def test_changes_of_the_batch_that_exclude_each_other_are_refused() -> None:
    for name in ("growing+keep=0.25", "growing+pools=2", "random+rows=8,pools=2", "growing+rows=8,keep=0.5"):
        with pytest.raises(ConfigError, match="both set the batch; leave one out"):
            method_settings(name, BASE)
    few = {**BASE, "training": {**BASE["training"], "per_device_train_batch_size": 2}}
    with pytest.raises(ConfigError, match="rows=1 would be kept of 4, in 2 micro-batches of 2"):
        method_settings("colm+rows=1", few)


def test_the_order_is_random_unless_the_method_says_otherwise() -> None:
    ordered = SelectionConfig(features="none", order="balanced", order_by="sources").to_dict()
    for name in ("random", "control", "colm", "random-n"):
        assert method_settings(name, {**BASE, "selection": ordered})["selection"]["order"] == "random"
    for name in ("random+order=balanced", "control+order=balanced,order_by=f.npy", "colm+keep=1.0,order=balanced"):
        found = method_settings(name, {**BASE, "selection": ordered})["selection"]
        assert (found["order"], found["order_by"]) == ("balanced", "f.npy" if "f.npy" in name else "sources")
    with pytest.raises(ConfigError, match="needs features='none' .*they are 'exact' and keep=0.25"):
        method_settings("colm+order=balanced", BASE)


def test_a_configured_schedule_gives_way_to_a_method_with_its_own_share() -> None:
    scheduled = {**BASE, "selection": SelectionConfig(keep_schedule=((0, 1.0), (5, 0.5))).to_dict()}
    assert method_settings("random-n", scheduled)["selection"]["keep"] == 1.0
    assert method_settings("colm+keep_count=8", scheduled)["selection"]["keep_schedule"] == []
    assert method_settings("colm", scheduled)["selection"]["keep_schedule"] == [[0, 1.0], [5, 0.5]]


def test_a_growing_batch_ends_at_the_whole_pool() -> None:
    config = SelectionConfig.from_dict(selection("growing"))
    assert [config.kept_rows(64, 4, step=step) for step in (0, 5, 10)] == [8, 36, 64]
    few = {**BASE, "training": {**BASE["training"], "per_device_train_batch_size": 4}}
    assert SelectionConfig.from_dict(method_settings("growing", few)["selection"]).kept_rows(16, 4) == 4


def test_a_temperature_changes_the_sources_shares_of_the_data() -> None:
    weighted = {**BASE, "data": {"weights": {"a": 1.0}, "temperature": None}}
    assert method_settings("temperature", weighted)["data"] == {
        "weights": {},
        "temperature": pytest.approx(3.333, abs=1e-3),
    }
    assert method_settings("control+temperature=2", BASE)["data"]["temperature"] == 2
    assert method_settings("control", weighted)["data"] == weighted["data"]
    with pytest.raises(ConfigError, match="temperature=0 must be a number above 0"):
        method_settings("random+temperature=0", BASE)
    with pytest.raises(ConfigError, match="model: tiny makes its vocabulary from the training rows"):
        method_settings("temperature", {**BASE, "model": "tiny"})


def test_batches_add_methods() -> None:
    assert batch_methods([]) == []
    assert batch_methods([8, 16, 8]) == ["random+rows=8", "random+rows=16", "growing", "temperature"]
    with pytest.raises(ConfigError, match="--batches 0"):
        batch_methods([0])


def test_changes_to_a_method() -> None:
    changed = selection("colm+keep_count=8,adam=false")
    assert (changed["keep_count"], changed["keep"], changed["adam"]) == (8, None, False)
    counted = {**BASE, "selection": SelectionConfig(keep_count=8).to_dict()}
    kept = method_settings("colm+keep=0.125", counted)["selection"]
    assert (kept["keep"], kept["keep_count"]) == (0.125, None)
    whole = method_settings("random-n", counted)["selection"]
    assert (whole["keep"], whole["keep_count"]) == (1.0, None)
    larger = method_settings("colm+pools=4,keep=0.125", BASE)
    assert larger["training"]["gradient_accumulation_steps"] == 16
    assert larger["selection"]["keep"] == 0.125


def test_bad_names() -> None:
    with pytest.raises(ConfigError, match=r"Unknown method 'colm-exact'\. Did you mean.*Known: colm, "):
        method_settings("colm-exact", BASE)
    with pytest.raises(ConfigError, match="'keep' in the method 'colm\\+keep' is not a change"):
        method_settings("colm+keep", BASE)
    with pytest.raises(ConfigError, match="'colm\\+pools=0': pools=0 must be a whole number of at least 1"):
        method_settings("colm+pools=0", BASE)
    with pytest.raises(ConfigError, match="Unknown selection setting 'kep'"):
        method_settings("colm+kep=1", BASE)
    # Its results would be missing from the comparison, which looks for them in a folder of the method's name.
    with pytest.raises(ConfigError, match="contains '/', which the name of its folder cannot.*selection.order_by"):
        method_settings("random+order=balanced,order_by=runs/words.parquet", BASE)


@pytest.mark.parametrize("method", ["control", "random", "colm-spsa", "colm"])
def test_a_method_without_a_plain_pass_reuses_no_forward(method: str) -> None:
    selection = SelectionConfig(reuse_forward=True, reuse_offload=True).to_dict()
    settings = method_settings(method, {"selection": selection, "training": {}})
    reused = settings["selection"]["reuse_forward"], settings["selection"]["reuse_offload"]
    assert reused == (method == "colm", method == "colm")
