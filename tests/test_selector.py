"""The whole step: what is kept, that nothing else decides it, and what state it leaves."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colm import ConfigError, CoresetSelector, DataError, SelectionConfig
from colm.features.adam import empty_history
from colm.features.exact import value_gradients
from colm.features.selection_pass import FEATURES
from colm.features.shorten import largest_coordinates
from colm.select.facility import facility_location
from colm.step.pool import Pool
from colm.step.state import SelectionState
from tests.support.models import one_row, ragged_batch, tiny_model
from tests.support.pools import LENGTHS, SIZES, SOURCES, pool_of_16


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


def test_small_rows_are_kept_whole_and_big_ones_by_quota(model: Any) -> None:
    selector = CoresetSelector(model, SelectionConfig(), SIZES)
    coreset = selector.select(pool_of_16(), SOURCES)
    record = selector.commit()
    assert len(coreset.indices) == 8
    assert coreset.weights.tolist() == [0.125] * 8
    assert coreset.indices.dtype == torch.int64
    assert {6, 11, 12} <= set(coreset.indices.tolist())
    kept = [SOURCES[i] for i in coreset.indices]
    assert (kept.count("big"), kept.count("large")) == (3, 2)  # 5 of 9 and 4 rows: 3.46 and 1.54
    assert record.small_kept == 3
    assert record.pool_count == 16
    assert record.kept_count == 8
    assert record.kept["tiny"] == [6]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("preset", ["colm", "matched"])
def test_gradients_kept_whole_pick_as_those_in_factors(
    preset: str, lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (0, 2**24):
        monkeypatch.setattr("colm.features.factors.SMALL_BYTES", size)
        selector = CoresetSelector(
            tiny_model("llama", lora=lora), SelectionConfig.from_dict({"preset": preset, "coordinates": 40}), SIZES
        )
        picks = []
        for seed in (0, 1, 2):
            coreset = selector.select(ragged_batch(LENGTHS, seed=seed), SOURCES)
            selector.commit()
            picks.append(coreset.indices.tolist())
        found.append((picks, selector.state_dict()))
    (factors, their_state), (whole, state) = found
    assert whole == factors
    for name in ("m", "v"):
        torch.testing.assert_close(state[name], their_state[name])


def test_equals_the_method_written_out(model: Any) -> None:
    """Two steps by hand: gradients, Adam with the kept rows' history, coordinates, medoids per source."""
    config = SelectionConfig(coordinates=40)
    selector = CoresetSelector(model, config, SIZES)
    history = empty_history(512, torch.device("cpu"))
    for seed in (0, 1):
        batch = ragged_batch(LENGTHS, seed=seed)
        coreset = selector.select(batch, SOURCES)
        gradients = value_gradients(model, batch)
        m, v = 0.9 * history.m + 0.1 * gradients, 0.999 * history.v + 0.001 * gradients**2
        steps = (m / (1 - 0.9 ** (seed + 1))) / ((v / (1 - 0.999 ** (seed + 1))).sqrt() + 1e-8)
        expected = [i for i, source in enumerate(SOURCES) if source in ("small", "tiny")]
        picks = []
        for source, quota in (("big", 3), ("large", 2)):
            rows = torch.tensor([i for i, s in enumerate(SOURCES) if s == source])
            step = steps[rows]
            features = step[:, largest_coordinates(step.mean(0), 40)]
            picks += rows[facility_location(features, quota)].tolist()
        assert coreset.indices.tolist() == sorted(expected + picks)
        history = history._replace(m=m[picks].mean(0), v=v[picks].mean(0), updates=seed + 1)
        selector.commit()
    state = selector.state_dict()
    torch.testing.assert_close(state["m"], history.m)
    torch.testing.assert_close(state["v"], history.v)
    assert (state["step"], state["updates"]) == (2, 2)


@given(st.permutations(range(16)), st.lists(st.integers(1, 15), max_size=3, unique=True), st.integers(0, 5), st.data())
def test_neither_order_nor_split_nor_padding_decides(
    model_order: list[int], cuts: list[int], extra: int, data: st.DataObject
) -> None:
    model = tiny_model("llama")
    features = data.draw(st.sampled_from(["exact", "none"]))
    config = SelectionConfig(keep_count=9, features=features)
    one = CoresetSelector(model, config, SIZES)
    whole = pool_of_16()
    expected = set(one.select(whole, SOURCES).indices.tolist())
    rows = [one_row(whole, i) for i in model_order]
    bounds = [0, *sorted(cuts), 16]
    side = data.draw(st.sampled_from(["left", "right"]))
    batches = []
    for start, end in itertools.pairwise(bounds):
        width = max(row["input_ids"].shape[1] for row in rows[start:end]) + extra
        batches.append(_pad(rows[start:end], width, side))
    selector = CoresetSelector(model, config, SIZES)
    found = selector.select(batches, [SOURCES[i] for i in model_order], dataset_index=model_order)
    assert {model_order[i] for i in found.indices.tolist()} == expected


def _pad(rows: list[dict[str, Any]], width: int, side: str) -> dict[str, Any]:
    fill = {"labels": -100}
    out = {key: torch.full((len(rows), width), fill.get(key, 0)) for key in rows[0]}
    for index, row in enumerate(rows):
        length = row["input_ids"].shape[1]
        at = width - length if side == "left" else 0
        for key, value in row.items():
            out[key][index, at : at + length] = value[0]
    return out


@pytest.mark.parametrize("features", ["exact", "spsa", "none"])
def test_the_seed_decides_and_the_global_random_state_does_not(model: Any, features: Any) -> None:
    def picks(seed: int, steps: int = 2) -> list[list[int]]:
        selector = CoresetSelector(model, SelectionConfig(features=features, seed=seed), SIZES)
        chosen = []
        for _ in range(steps):
            before = torch.random.get_rng_state()
            chosen.append(selector.select(pool_of_16(), SOURCES).indices.tolist())
            assert torch.equal(before, torch.random.get_rng_state())
            torch.rand(3)
            selector.commit()
        return chosen

    assert picks(0) == picks(0)
    if features == "none":
        assert picks(0) != picks(1)
        assert len({tuple(step) for step in picks(0, steps=5)}) > 1


def test_a_select_without_commit_leaves_no_trace(model: Any) -> None:
    selector = CoresetSelector(model, SelectionConfig(), SIZES)
    first = selector.select(pool_of_16(), SOURCES)
    assert selector.state_dict()["step"] == 0
    assert selector.state_dict()["m"] is None
    again = selector.select(pool_of_16(), SOURCES)
    assert torch.equal(first.indices, again.indices)
    selector.commit()
    with pytest.raises(ConfigError, match=r"commit\(\) was called without a preceding select\(\)"):
        selector.commit()


def test_state_goes_on_where_it_was(model: Any) -> None:
    config = SelectionConfig(features="spsa", spsa_probes=2)
    one = CoresetSelector(model, config, SIZES)
    for seed in range(2):
        one.select(ragged_batch(LENGTHS, seed=seed), SOURCES)
        one.commit()
    other = CoresetSelector(model, config, SIZES)
    other.load_state_dict(one.state_dict())
    batch = ragged_batch(LENGTHS, seed=9)
    assert torch.equal(one.select(batch, SOURCES).indices, other.select(batch, SOURCES).indices)
    with pytest.raises(ConfigError, match=r"has 512 entries but the feature has 1024"):
        CoresetSelector(tiny_model("phi"), config, SIZES).load_state_dict(one.state_dict())


@pytest.mark.parametrize("features", ["mean_hidden", "last_hidden", "loss", "gradient_norm"])
def test_baselines_are_compared_as_they_are_and_leave_no_history(model: Any, features: Any) -> None:
    selector = CoresetSelector(model, SelectionConfig(features=features, coordinates=3), SIZES)
    batch = pool_of_16()
    coreset = selector.select(batch, SOURCES)
    expected = [i for i, source in enumerate(SOURCES) if source in ("small", "tiny")]
    site = selector.site
    assert site is not None
    found = FEATURES[features](model, site, Pool(batch), [list(range(16))]).rows(torch.arange(16))
    for source, quota in (("big", 3), ("large", 2)):
        rows = torch.tensor([i for i, s in enumerate(SOURCES) if s == source])
        expected += rows[facility_location(found[rows], quota)].tolist()  # all coordinates, no Adam
    assert coreset.indices.tolist() == sorted(expected)
    assert selector.commit().kept_count == 8
    state = selector.state_dict()
    assert (state["step"], state["m"], state["v"]) == (1, None, None)
    CoresetSelector(model, SelectionConfig(features=features), SIZES).load_state_dict(state)


@pytest.mark.parametrize("directions", ["fixed", "fresh"])
def test_fixed_directions_repeat_and_fresh_ones_do_not(model: Any, directions: Any) -> None:
    selector = CoresetSelector(model, SelectionConfig(features="spsa", spsa_directions=directions), SIZES)
    means = []
    for seed in range(2):
        selector.select(ragged_batch(LENGTHS, seed=seed), SOURCES)
        selector.commit()
        means.append(selector.state_dict()["m"])
    # With one probe every estimate is a multiple of its direction, and so is their running mean.
    along = abs(float(torch.cosine_similarity(*means, dim=0)))
    assert (along > 1 - 1e-5) == (directions == "fixed")


def test_overflow_of_small_sources_is_a_sample_in_proportion_said_once(
    model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = SelectionConfig(keep_count=3, small_sources=("big", "tiny"))
    selector = CoresetSelector(model, config, SIZES)
    seen = set()
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            coreset = selector.select(pool_of_16(), SOURCES)
            selector.commit()
            kept = [SOURCES[i] for i in coreset.indices]
            assert (kept.count("big"), kept.count("tiny")) == (3, 0)  # 2.7 and 0.3 of 3
            seen.add(tuple(coreset.indices.tolist()))
    assert len(seen) > 1
    assert caplog.text.count("Overflow") == 1


def test_rows_without_labels_are_dropped_and_counted(model: Any) -> None:
    batch = pool_of_16()
    batch["labels"][:4] = -100
    selector = CoresetSelector(model, SelectionConfig(), SIZES)
    coreset = selector.select(batch, SOURCES)
    assert len(coreset.indices) == 6  # half of 12
    assert not {0, 1, 2, 3} & set(coreset.indices.tolist())
    assert selector.commit().unlabelled == 4


def test_a_pool_without_a_choice_is_trained_whole(model: Any) -> None:
    selector = CoresetSelector(model, SelectionConfig(keep_count=1), SIZES)
    batches = [ragged_batch([4]), ragged_batch([5])]
    coreset = selector.select(batches, ["big", "large"])
    assert coreset.indices.tolist() == [0, 1]
    one = ragged_batch([4])  # a batch of one
    assert selector.select(one, ["big"]).indices.tolist() == [0]
    batches = [ragged_batch([4, 5, 6]), ragged_batch([5, 4, 6])]
    for batch in batches:
        batch["labels"][:] = -100
    batches[1]["labels"][1, 2:] = 3
    kept = selector.select(batches, ["big"] * 6).indices.tolist()
    assert kept == [0, 4]  # the labelled row, and one more so that no micro-batch is empty


def test_nonfinite_rows_are_never_medoids_and_training_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    batch = pool_of_16()
    with torch.no_grad():
        model.model.embed_tokens.weight[63] = float("inf")
    batch["input_ids"][batch["input_ids"] == 63] = 5
    batch["labels"][batch["labels"] == 63] = 5
    for row in (0, 3, 8):
        batch["input_ids"][row, 1] = 63
    selector = CoresetSelector(model, SelectionConfig(), SIZES)
    with caplog.at_level(logging.WARNING):
        coreset = selector.select(batch, SOURCES)
    assert not {0, 3, 8} & set(coreset.indices.tolist())
    assert len(coreset.indices) == 8
    record = selector.commit()
    assert record.nonfinite == 3
    assert "3 of 13 rows have features that are not finite" in caplog.text
    assert torch.isfinite(selector.state_dict()["m"]).all()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    assert selector.select(batch, SOURCES).indices.tolist() == [6, 11, 12]  # the small sources alone


def test_take_gives_as_many_micro_batches_as_came(model: Any) -> None:
    batches = [ragged_batch(LENGTHS[i : i + 4], seed=i) for i in range(0, 16, 4)]
    selector = CoresetSelector(model, SelectionConfig(keep_count=6), SIZES)
    coreset = selector.select(batches, SOURCES)
    rows = selector.take(batches, coreset)
    assert len(rows) == 4
    assert max(batch["input_ids"].numel() for batch in rows) <= 18  # two of the longest rows
    pool = Pool(batches)
    longest_first = sorted(coreset.indices.tolist(), key=lambda p: (-LENGTHS[p], p))
    kept = [tuple(pool.collate([p])["input_ids"][0].tolist()) for p in longest_first]
    taken = [
        tuple(ids[mask.bool()].tolist())
        for batch in rows
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    assert taken == kept


def test_selection_begins_after_the_warm_up_and_runs_every_so_manieth_step(model: Any) -> None:
    def run(config: SelectionConfig) -> tuple[list[list[int]], list[bool], list[int]]:
        selector = CoresetSelector(model, config, SIZES)
        kept, matched, updates = [], [], []
        for _ in range(6):
            kept.append(selector.select(pool_of_16(), SOURCES).indices.tolist())
            matched.append(selector.commit().match is not None)
            updates.append(selector.state_dict()["updates"])
        return kept, matched, updates

    kept, matched, updates = run(SelectionConfig(warmup_steps=2, every=2))
    assert matched == [False, False, True, False, True, False]
    assert updates == [0, 0, 1, 1, 2, 2]
    at_random = run(SelectionConfig(features="none"))[0]
    assert [kept[step] == at_random[step] for step in range(6)] == [not found for found in matched]
    assert all({6, 11, 12} <= set(rows) for rows in kept)
    assert kept[2] == run(SelectionConfig())[0][0]  # its first update, so the same as without a warm-up
    sizes = [len(rows) for rows in run(SelectionConfig(keep_schedule=((1, 1.0), (3, 0.5))))[0]]
    assert sizes == [16, 16, 12, 8, 8, 8]


def test_sgd_turns_normalisation_off_and_says_so(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    selector = CoresetSelector(model, SelectionConfig(), SIZES, optimizer=optimizer)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            selector.select(pool_of_16(), SOURCES)
            selector.commit()
    assert selector.state_dict()["m"] is None
    assert caplog.text.count("features are not normalized") == 1


def test_bad_input(model: Any) -> None:
    with pytest.raises(ConfigError, match="needs source_sizes"):
        CoresetSelector(model)
    selector = CoresetSelector(model, SelectionConfig(), SIZES)
    with pytest.raises(DataError, match="2 sources for a pool of 16 rows"):
        selector.select(pool_of_16(), ["big", "big"])
    with pytest.raises(DataError, match="1 dataset indices for a pool of 16"):
        selector.select(pool_of_16(), SOURCES, dataset_index=[3])
    with pytest.raises(DataError, match="Row 0 of the pool has source 'bigg'.*Did you mean 'big'"):
        selector.select(pool_of_16(), ["bigg", *SOURCES[1:]])


def test_without_sizes_sources_are_those_of_the_pool(model: Any) -> None:
    selector = CoresetSelector(model, SelectionConfig(small_sources="none", features="none"))
    assert selector.small == frozenset()
    assert len(selector.select(pool_of_16(), SOURCES).indices) == 8


def test_all_sources_as_one(model: Any) -> None:
    config = SelectionConfig(by_source=False, small_sources="none", adam=False, coordinates=10_000)
    coreset = CoresetSelector(model, config, SIZES).select(pool_of_16(), SOURCES)
    expected = facility_location(value_gradients(model, pool_of_16()), 8)
    assert coreset.indices.tolist() == sorted(expected.tolist())


def test_the_match_is_the_cosine_in_feature_space_beside_that_of_random_rows(model: Any) -> None:
    selector = CoresetSelector(model, SelectionConfig(adam=False), SIZES)
    batch = pool_of_16()
    coreset = selector.select(batch, SOURCES)
    record = selector.commit()
    gradients = value_gradients(model, batch)
    rows = {name: [i for i, s in enumerate(SOURCES) if s == name] for name in ("big", "large")}
    pool = gradients[rows["big"] + rows["large"]].mean(0)
    kept = gradients[[i for i in coreset.indices.tolist() if SOURCES[i] in rows]].mean(0)
    assert record.match == pytest.approx(float(torch.cosine_similarity(kept, pool, dim=0)), abs=1e-5)
    generator = torch.Generator().manual_seed(0)
    along, squares = [], []
    for _ in range(3000):
        drawn = [
            held[i]
            for held, k in ((rows["big"], 3), (rows["large"], 2))
            for i in torch.randperm(len(held), generator=generator)[:k]
        ]
        mean = gradients[drawn].mean(0)
        along.append(mean @ pool)
        squares.append(mean.square().sum())
    expected = torch.stack(along).mean() / (torch.stack(squares).mean() * pool.square().sum()).sqrt()
    assert record.match_random == pytest.approx(float(expected), abs=0.01)


@pytest.mark.parametrize("side", ["left", "right"])
def test_features_of_the_first_labelled_tokens_are_those_of_shorter_rows(model: Any, side: str) -> None:
    batch = ragged_batch(LENGTHS, side=side)
    whole = CoresetSelector(model, SelectionConfig(coordinates=40, pass_labels=2), SIZES)
    picks = whole.select(batch, SOURCES).indices.tolist()
    cut = CoresetSelector(model, SelectionConfig(coordinates=40), SIZES)
    shorter = Pool(batch).cut_behind(2).batches[0]
    assert cut.select(shorter, SOURCES).indices.tolist() == picks
    taken = whole.take(batch, whole.select(batch, SOURCES))
    assert max(row["labels"].ne(-100).sum(1).max() for row in taken) > 2  # training sees the rows whole
    more = CoresetSelector(model, SelectionConfig(coordinates=40, pass_labels=99), SIZES)
    plain = CoresetSelector(model, SelectionConfig(coordinates=40), SIZES)
    assert more.select(batch, SOURCES).indices.tolist() == plain.select(batch, SOURCES).indices.tolist()


def test_a_selection_pass_in_bfloat16_is_near_and_leaves_the_caller_in_float32(model: Any) -> None:
    found = {}
    for dtype in (None, "bfloat16"):
        selector = CoresetSelector(model, SelectionConfig(pass_dtype=dtype), SIZES)
        selector.select(pool_of_16(), SOURCES)
        selector.commit()
        found[dtype] = selector.state_dict()["m"]
        assert not torch.is_autocast_enabled("cpu")
    assert not torch.equal(found[None], found["bfloat16"])
    assert torch.cosine_similarity(found[None], found["bfloat16"], 0) > 0.5  # perhaps of other rows
    logits = model(input_ids=pool_of_16()["input_ids"]).logits
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("preset", ["colm", "matched"])
def test_the_state_goes_where_the_features_are(preset: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    selector = CoresetSelector(model, SelectionConfig.from_dict({"preset": preset}), SIZES)
    selector.select(pool_of_16(), SOURCES)
    selector.commit()
    moves = []
    monkeypatch.setattr(SelectionState, "move_to", lambda state, device: moves.append(device))
    selector.select(pool_of_16(), SOURCES)
    assert moves == [torch.device("cpu")]
    monkeypatch.undo()
    selector.state.move_to(torch.device("meta"))  # the one other device that every machine has
    held = selector.state.carried if preset == "matched" else selector.state.history
    assert {part.device.type for part in ([held] if preset == "matched" else [held.m, held.v])} == {"meta"}
