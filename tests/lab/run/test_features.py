"""A vector for each training row: that of the row's text, or of its gradient, in the order of training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests.support.files import write_lines
from tests.support.topics import topic_rows

from colm.errors import ConfigError, DataError, UnsupportedModelError
from colm.features.shorten import draw_sketch
from colm.lab.data.fingerprint import fingerprint_data
from colm.lab.run import features
from colm.lab.run.features import make_features
from colm.lab.run.prepare import PreparedData, prepare_data
from colm.lab.run.resume import check_order
from colm.lab.run.settings import RunSettings, resolve_settings
from colm.lab.run.trainer import make_model
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.embed import TfidfEmbedder
from colm.lab.sources.rows import Row, Rows
from colm.lab.sources.wanted import Part, Wanted
from colm.models import build_tiny_model, train_tiny_tokenizer


def write_mixture(folder: Path, **changes: Any) -> RunSettings:
    """Write a mixture of two formats, of which some rows are held out, dropped, left out or repeated."""
    rows = topic_rows(60).to_list()
    for number in (3, 4, 17):
        rows[number]["completion"] = ""  # nothing to learn
    pairs = write_lines(folder / "pairs.jsonl", rows[:30])
    texts = [{"source": row["source"], "text": row["prompt"] + row["completion"]} for row in rows[30:]]
    values = {
        "model": "tiny",
        "mixture": [{"path": pairs}, {"path": write_lines(folder / "texts.jsonl", texts)}],
        "data": {
            **{"validation_rows": {"farm": 2}, "cap": {"farm": 25}, "weights": {"farm": 1, "sea": 1, "law": 3}},
            **{"chat_template": False, "max_length": 64},
        },
        "training": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        "output_dir": str(folder / "run"),
    }
    return resolve_settings(values | changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSettings, PreparedData]:
    settings = write_mixture(tmp_path_factory.mktemp("rows"))
    return settings, prepare_data(settings)


def read(path: Path) -> np.ndarray:
    return np.array(pq.read_table(path)["features"].to_pylist(), dtype=np.float32)


def decoded(data: PreparedData) -> list[str]:
    """Return the rows' texts as training reads them."""
    texts: list[str] = data.tokenizer.batch_decode(data.train["input_ids"][:], skip_special_tokens=True)
    return texts


def test_words_are_those_of_the_training_rows(made: tuple[RunSettings, PreparedData], tmp_path: Path) -> None:
    settings, data = made
    rows = [Row("text", {"text": text}) for text in decoded(data)]
    assert len({row.text for row in rows}) < len(rows) != 60  # repeated, dropped
    embedder = TfidfEmbedder(ClusterConfig(dimensions=5, seed=settings.data_seed))
    embedder.fit(rows)
    found = make_features(settings, Wanted("words", 5), tmp_path / "f.parquet")
    assert (found.rows, found.header.dimensions, found.broken, found.new) == (len(rows), 5, 0, True)
    assert read(found.path).tolist() == embedder.embed(rows).astype(np.float32).tolist()
    fingerprint = fingerprint_data(data.train, None, "source")["train"]
    assert found.header.fingerprint == fingerprint
    assert found.header.settings == {
        **{"by": "words", "model": None, "dimensions": 5},
        **{"terms": 30_000, "sample": 50_000, "seed": 0},
    }


def test_parts_of_words_share_what_is_fitted_to_a_sample_of_all_rows() -> None:
    config = ClusterConfig(dimensions=5, sample=100, seed=3)
    rows = Rows([topic_rows(60), topic_rows(140, seed=1)])
    by_hand = TfidfEmbedder(config)
    by_hand.fit(rows.take(sorted(np.random.default_rng(3).choice(200, 100, replace=False).tolist())))
    expected = by_hand.embed(rows.read(0, 200)).astype(np.float32).tolist()
    for number in range(3):
        part = Part(number, 3).rows(200)
        embedder = TfidfEmbedder(config)
        embedder.chunk = 30
        found = np.concatenate(list(features.text_vectors(embedder, config, rows)(part)))
        assert found.tolist() == expected[part.start : part.stop]


def gradient_by_hand(model: Any, row: dict[str, Any], dimensions: int) -> np.ndarray:
    """Return the count sketch of a row's gradient from a backward pass through the whole model."""
    model.zero_grad()
    model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.backward()
    gradient = model.model.layers[-1].self_attn.v_proj.weight.grad.flatten()
    sketch = draw_sketch(len(gradient), dimensions, gradient.device)
    found = np.zeros(dimensions)
    assert sketch is not None
    for value, bucket, sign in zip(gradient.tolist(), sketch.bucket.tolist(), sketch.sign.tolist(), strict=True):
        found[bucket] += sign * value
    return found


def test_gradients_are_those_of_a_backward_pass(made: tuple[RunSettings, PreparedData], tmp_path: Path) -> None:
    settings, data = made
    found = read(make_features(settings, Wanted("gradients", 16), tmp_path / "f.parquet").path)
    assert found.shape == (len(data.train), 16)
    model = make_model(settings, data)
    for number in (0, 1, 7, 8, len(found) - 1):
        expected = gradient_by_hand(model, data.train[number], 16)
        np.testing.assert_allclose(found[number], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    part = read(make_features(settings, Wanted("gradients", 16), tmp_path / "f.parquet", part=Part(1, 3)).path)
    rows = Part(1, 3).rows(len(found))
    np.testing.assert_allclose(part, found[rows.start : rows.stop], rtol=1e-3, atol=1e-4 * np.abs(found).max())


def save_model(folder: Path, texts: Sequence[str]) -> str:
    """Save a random model with another tokenizer than that of a run with model=tiny."""
    tokenizer = train_tiny_tokenizer(texts)
    torch.manual_seed(1)
    build_tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_gradients_of_another_model_are_of_its_own_tokens(
    made: tuple[RunSettings, PreparedData], tmp_path: Path
) -> None:
    name = save_model(tmp_path / "model", ["cow barn hay"] * 3)
    settings = made[0]._replace(lora={"r": 2}, selection=replace(made[0].selection, value_module="nowhere"))
    found = make_features(settings, Wanted("gradients", 16, name), tmp_path / "f.parquet")
    assert found.header.settings["model"] == name
    assert found.header.settings["lora"] is None
    other = settings._replace(model=name, lora=None)
    data = prepare_data(other)
    assert data.train["input_ids"][:] != made[1].train["input_ids"][:]
    assert found.header.fingerprint == fingerprint_data(made[1].train, None, "source")["train"]  # the run's
    model = make_model(other, data)
    for number in (0, len(data.train) - 1):
        expected = gradient_by_hand(model, data.train[number], 16)
        np.testing.assert_allclose(read(found.path)[number], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_model_that_cannot_read_all_rows_is_refused(tmp_path: Path) -> None:
    settings = write_mixture(tmp_path)
    short = settings._replace(data=replace(settings.data, max_length=18))
    rows = len(prepare_data(short).train)
    name = save_model(tmp_path / "model", [])
    with pytest.raises(DataError, match=rf"of the {rows} training rows lack a labeled token within max_length=18 with"):
        make_features(short, Wanted("gradients", 16, name), tmp_path / "f.parquet")
    assert not (tmp_path / "f.parquet").exists()


class Encoder:
    """Stands in for a sentence encoder: a vector of 384 numbers that only the text decides."""

    def __init__(self, name: str) -> None:
        assert name == "some/encoder"

    def encode(self, texts: Sequence[str], **options: Any) -> np.ndarray:
        return np.array([[(len(text) * place) % 7 - 3 for place in range(384)] for text in texts], dtype=np.float32)


@pytest.mark.parametrize("dimensions", [16, 384, 1000])
def test_a_sentence_is_sketched_if_it_is_longer(
    made: tuple[RunSettings, PreparedData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dimensions: int
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Encoder))  # type: ignore[arg-type]
    settings, data = made
    found = make_features(settings, Wanted("sentence", dimensions, "some/encoder"), tmp_path / "f.parquet")
    assert found.header.dimensions == min(dimensions, 384)
    assert found.header.settings == {"by": "sentence", "model": "some/encoder", "dimensions": dimensions}
    texts = [text for part in data.texts for text in _texts(part)]
    vectors = torch.from_numpy(Encoder("some/encoder").encode(texts))
    sketch = draw_sketch(384, dimensions, torch.device("cpu"))
    assert read(found.path).tolist() == (vectors if sketch is None else sketch.apply(vectors)).tolist()


def _texts(part: Any) -> list[str]:
    if "text" in part.column_names:
        return list(part["text"])
    return [f"{prompt}\n{completion}" for prompt, completion in zip(part["prompt"], part["completion"], strict=True)]


def test_a_missing_package_or_model_is_noticed_before_the_data_is_read(
    made: tuple[RunSettings, PreparedData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # type: ignore[arg-type]
    monkeypatch.setattr(features, "prepare_data", None)
    with pytest.raises(ConfigError, match=r"pip install 'colm\[sentence\]'.*--by words of colm features"):
        make_features(made[0], Wanted("sentence"), tmp_path / "f.parquet")
    with pytest.raises(ConfigError, match="The tokenizer of 'no-such/model' could not be loaded"):
        make_features(made[0], Wanted("gradients", model="no-such/model"), tmp_path / "f.parquet")


def test_a_vector_that_is_not_finite_is_zero(
    made: tuple[RunSettings, PreparedData],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def embed(self: Any, rows: Sequence[Row]) -> np.ndarray:
        return np.array([[1.0, np.inf if number % 9 == 1 else 2.0] for number in range(len(rows))], dtype=np.float16)

    monkeypatch.setattr(TfidfEmbedder, "embed", embed)
    found = make_features(made[0], Wanted("words", 2), tmp_path / "f.parquet")
    values = read(found.path)
    broken = [number for number in range(len(values)) if number % 9 == 1]
    assert np.flatnonzero((values == 0).all(1)).tolist() == broken
    assert found.broken == len(broken)
    assert f"{len(broken)} of {len(values)} rows have no finite vector; theirs is zero." in caplog.text


def test_a_model_without_a_value_projection(made: tuple[RunSettings, PreparedData], tmp_path: Path) -> None:
    settings = made[0]._replace(selection=replace(made[0].selection, value_module="v_prj"))
    with pytest.raises((UnsupportedModelError, ConfigError), match="value_module='v_prj' does not match any module"):
        make_features(settings, Wanted("gradients"), tmp_path / "f.parquet")
    assert list(tmp_path.iterdir()) == []


def test_the_vectors_that_order_a_run_are_checked(made: tuple[RunSettings, PreparedData], tmp_path: Path) -> None:
    settings, data = made
    path = make_features(settings, Wanted("words", 2), tmp_path / "f.parquet").path
    others = data._replace(train=data.train.select(range(9)))

    def ordered_by(file: object, *, order: str = "balanced", streaming: bool = False) -> Any:
        given = SimpleNamespace(source_column="source", streaming=streaming)
        return SimpleNamespace(model="tiny", selection=SimpleNamespace(order_by=file, order=order), data=given)

    check_order(ordered_by(str(path)), data)
    unused = ordered_by(str(path), order="random"), ordered_by(str(path), streaming=True)
    for harmless in (settings, ordered_by("tokens"), ordered_by(None), *unused):
        check_order(harmless, others)
    for found in (None, fingerprint_data(others.train, None, "source")):
        with pytest.raises(DataError, match="f.parquet has the vectors of other rows"):
            check_order(ordered_by(str(path)), others, found)
