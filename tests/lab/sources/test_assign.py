"""A row has the source that `label_rows` gives it, in any batch, of any kind, in any process."""

from __future__ import annotations

import importlib.util
import json
import math
import pickle
import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.topics import topic_rows

from colm.errors import ConfigError, DataError
from colm.lab.sources.assign import AssignSources
from colm.lab.sources.config import ClusterConfig
from colm.lab.sources.labelling import label_rows
from colm.lab.sources.rows import Rows
from colm.lab.sources.store import centroids_path, load_arrays, save_arrays

Fitted = tuple[Path, Dataset, list[str]]
ROWS = 300


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Return the clusters of a sample of rows, all rows, and the source of each."""
    rows, path = topic_rows(ROWS, labelled=False), tmp_path_factory.mktemp("clusters") / "labels.parquet"
    found = label_rows(Rows([rows]), ClusterConfig(clusters=3, sample=100, dimensions=8), path)
    return centroids_path(path), rows, found.names


def nearest(file: Path, text: str) -> tuple[int, np.ndarray]:
    """Return the nearest cluster of a text by the definition of TF-IDF, a word at a time, and all distances."""
    held = load_arrays(file)
    known = json.loads(held["state_words"].tobytes())
    words = Counter(re.findall(r"\w{1,40}|[^\w\s]", re.sub(r"\d", "0", text.lower())))
    counted = {word: count for word, count in words.items() if word in known}
    weights = {w: (1 + math.log(c)) * held["state_idf"][known.index(w)] for w, c in counted.items()}
    length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
    vector = sum((held["state_components"][:, known.index(w)] * v / length for w, v in weights.items()), np.zeros(8))
    vector = vector / (np.linalg.norm(vector) or 1.0)
    distances = np.array([np.linalg.norm(vector - point) for point in held["points"]])
    return int(distances.argmin()), distances


def test_the_source_is_that_of_the_nearest_cluster(fitted: Fitted) -> None:
    file, _, names = fitted
    texts = ["boat boat Wave!", "cow hay 12 milk", "court", "boat cow court judge judge", "of unknown words"]
    found = AssignSources(file)({"text": texts})["source"]
    for text, name in zip(texts, found, strict=True):
        cluster, distances = nearest(file, text)
        assert distances[int(name[-1])] == pytest.approx(distances[cluster], abs=2e-3)  # embeddings are float16
    assert len(set(found)) == len(set(names)) == 3


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, ROWS), max_size=6), kind=st.sampled_from(["lists", "arrays", "pandas", "arrow"]))
def test_a_row_has_the_same_source_in_every_batch(fitted: Fitted, cuts: list[int], kind: str) -> None:
    file, rows, names = fitted
    assigner, found = AssignSources(file, "kind"), []
    places = sorted({0, *cuts, ROWS})
    for start, stop in pairwise(places):
        batch: Any = rows[start:stop]
        if kind == "arrays":
            batch = {name: np.array(cells, dtype=object) for name, cells in batch.items()}
        elif kind != "lists":
            batch = pd.DataFrame(batch) if kind == "pandas" else pa.table(batch)
        done = assigner(batch)
        assert type(done) is type(batch)
        found += pa.table(done)["kind"].to_pylist() if kind == "arrow" else list(done["kind"])
        assert list(done["prompt"] if kind != "arrow" else done["prompt"].to_pylist()) == rows["prompt"][start:stop]
    assert found == names


def test_an_empty_batch_and_rows_without_text(fitted: Fitted) -> None:
    assigner = AssignSources(fitted[0])
    assert assigner({"text": []}) == {"text": [], "source": []}
    empty, unknown = assigner({"text": [None, "xyzzy"]})["source"]
    assert empty == unknown


def test_the_source_column_is_replaced_in_its_place(fitted: Fitted) -> None:
    table = pa.table({"source": [1, 2], "text": ["boat wave", "cow hay"]})
    done = AssignSources(fitted[0])(table)
    assert done.column_names == ["source", "text"]
    assert done.schema.field("source").type == pa.string()


def test_conversations_and_other_names_of_columns(fitted: Fitted) -> None:
    file, rows, names = fitted
    pairs = list(zip(rows["prompt"][:30], rows["completion"][:30], strict=True))
    turns = [[{"role": "user", "content": ask}, {"role": "assistant", "content": said}] for ask, said in pairs]
    plain = AssignSources(file)({"question": [a for a, _ in pairs], "answer": [b for _, b in pairs], "id": range(30)})
    assert plain["source"] == names[:30]
    chats = {"conversations": [np.array([turn | {"name": None} for turn in chat], dtype=object) for chat in turns]}
    for batch in (chats, pd.DataFrame(chats), {"conversations": turns}):
        assert list(AssignSources(file)(batch)["source"]) == names[:30]
    assert AssignSources(file)(pa.table({"conversations": turns}))["source"].to_pylist() == names[:30]
    own = AssignSources(file, columns={"prompt": "first", "completion": "second"})
    assert own({"first": [a for a, _ in pairs], "second": [b for _, b in pairs]})["source"] == names[:30]
    with pytest.raises(DataError, match="data.columns maps 'prompt' to 'first', which the data does not have"):
        own({"text": ["boat"]})
    with pytest.raises(DataError, match="match no format"):
        AssignSources(file)({"a": ["boat"]})


def test_it_is_pickled_as_a_path_and_used_by_map(fitted: Fitted, tmp_path: Path) -> None:
    _, rows, names = fitted
    file = tmp_path / "labels.centroids.npz"
    file.write_bytes(fitted[0].read_bytes())
    assigner = AssignSources(file)
    held = pickle.dumps(assigner)
    assert len(held) < 500
    assert pickle.loads(held)(rows[:50])["source"] == names[:50]
    mapped = rows.map(assigner, batched=True, batch_size=7)
    assert mapped["source"][:] == names
    assert mapped["completion"][:] == rows["completion"][:]
    save_arrays(file, {**load_arrays(file), "mean": np.ones(8, dtype=np.float32)})
    with pytest.raises(DataError, match="centroids.npz has changed since its clusters were loaded"):
        pickle.loads(held)


def test_files_without_clusters_are_refused(fitted: Fitted, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no file .*colm sources --cluster DATA --out labels.parquet"):
        AssignSources(tmp_path / "none.npz")
    held, file = load_arrays(fitted[0]), tmp_path / "some.npz"
    about = json.loads(held["about"].tobytes())

    def save(changes: dict[str, Any]) -> None:
        changed = np.frombuffer(json.dumps(about | changes).encode(), dtype=np.uint8)
        save_arrays(file, {**held, "about": changed})

    save({"version": 0})
    with pytest.raises(DataError, match="does not hold the clusters of this version of colm.*version 0, not 1"):
        AssignSources(file)
    save({"settings": about["settings"] | {"embedding": "model"}})
    with pytest.raises(ConfigError, match="clusters of a model's hidden states"):
        AssignSources(file)
    del held["about"]
    save_arrays(file, held)
    with pytest.raises(DataError, match="if it is older, cluster again"):
        AssignSources(file)
    file.write_bytes(fitted[0].read_bytes()[:-100])
    with pytest.raises(DataError, match="does not hold the clusters"):
        AssignSources(file)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray Data, pip install 'ray[data]'")
def test_the_recipe_for_ray_gives_the_same_sources(fitted: Fitted, tmp_path: Path) -> None:
    file, rows, names = fitted
    (tmp_path / "labels.centroids.npz").write_bytes(file.read_bytes())
    (tmp_path / "rows").mkdir()
    rows.add_column("id", range(ROWS)).to_parquet(tmp_path / "rows" / "rows.parquet")
    guide = Path(__file__).parents[3] / "docs" / "guides" / "unlabeled.md"
    recipe = re.findall(r"```python notest\n(import ray.*?)```", guide.read_text(), flags=re.DOTALL)[0]
    script = recipe.replace("concurrency=8", "concurrency=1, batch_size=77")
    script = script.replace("import ray\n", "import ray\nray.init(num_cpus=2, include_dashboard=False)\n")
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    written = pq.read_table(tmp_path / "labeled").sort_by("id")
    assert written["source"].to_pylist() == names
