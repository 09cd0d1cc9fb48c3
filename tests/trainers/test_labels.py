"""Source labels, and rows without training labels, in the trainers and in custom loops."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tests.support.models import ragged_batch, tiny_model
from tests.support.sft import sft_settings, text_rows
from tests.support.trainers import coreset_trainer, lines, mixture
from torch.utils.data import IterableDataset
from transformers import set_seed

from colm import ConfigError, CoresetSelector, CoresetSFTTrainer, DataError, SelectionConfig
from colm.models import build_tiny_model, train_tiny_tokenizer
from colm.step.sources import source_name
from colm.trainers.columns import INDEX_KEY, SOURCE_KEY, encode_sources
from colm.trainers.left import count_learnable
from colm.trainers.streams import RunningSizes, encode_stream

LABELS: list[tuple[list[Any], list[str]]] = [
    (["no", " a "], ["no", " a "]),
    ([0, 7], ["0", "7"]),
    ([1.0, 0.5], ["1.0", "0.5"]),
    ([True, False], ["true", "false"]),
    ([date(2024, 1, 5), date(2024, 1, 6)], ["2024-01-05", "2024-01-06"]),
    ([Decimal("1.50"), Decimal("2")], ["1.50", "2.00"]),
]
MISSING = [None, math.nan, np.float32("nan"), pd.NaT, "", " "]


class Rows:
    """A dataset that only has rows."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class Stream(IterableDataset[dict[str, Any]]):
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)


def rows_of(labels: list[Any], repeats: int = 8) -> list[dict[str, Any]]:
    one = {"input_ids": [1, 2, 3, 4], "attention_mask": [1] * 4, "labels": [-100, 2, 3, 4]}
    return [{"source": label, **one} for label in labels * repeats]


KINDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "columns": Dataset.from_list,
    "formatted": lambda rows: Dataset.from_list(rows).with_format("numpy"),
    "rows": Rows,
    "stream": Stream,
    "hub stream": lambda rows: Dataset.from_list(rows).to_iterable_dataset(),
}


def encode(kind: str, rows: list[dict[str, Any]], sizes: dict[Any, int] | None = None) -> Any:
    dataset = KINDS[kind](rows)
    if "stream" in kind:
        return encode_stream(dataset, "source", sizes, window=100, max_steps=1)
    return encode_sources(dataset, "source")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("labels", "names"), LABELS)
def test_a_label_has_the_same_name_in_every_kind_of_data(kind: str, labels: list[Any], names: list[str]) -> None:
    rows = rows_of(labels)
    if kind in ("rows", "stream"):  # Arrow gives decimals of one column the same places
        names = [str(source_name(label)) for label in labels]
    encoded = encode(kind, rows)
    assert encoded.sizes == dict.fromkeys(sorted(names), 8)
    coded = [encoded.names[row[SOURCE_KEY]] for row in encoded.dataset]
    assert coded == names * 8
    assert [row[INDEX_KEY] for row in encoded.dataset] == list(range(16))
    if "stream" in kind:
        given_sizes = encode(kind, rows, dict.fromkeys([row["source"] for row in rows[:2]], 5))
        assert given_sizes.names == sorted(str(source_name(label)) for label in labels)


@pytest.mark.parametrize("kind", ["columns", "rows", "stream", "hub stream"])
@pytest.mark.parametrize("label", [None, math.nan, "", " "])
def test_a_missing_label_is_refused_in_every_kind_of_data(kind: str, label: Any) -> None:
    rows = rows_of([0.5 if isinstance(label, float) else "a", label], repeats=1)
    with pytest.raises(DataError, match="Row 1 has no source: its 'source' is"):
        encode(kind, rows)
    if "stream" in kind:
        with pytest.raises(DataError, match="Row 1 of the stream has no source: its 'source' is"):
            list(encode(kind, rows, {rows[0]["source"]: 5}).dataset)


@given(st.lists(st.one_of(st.text(), st.integers(), st.booleans(), st.sampled_from(MISSING)), min_size=1, max_size=9))
def test_rows_of_labels_of_all_types_are_counted_or_the_first_missing_one_is_named(labels: list[Any]) -> None:
    names = [source_name(label) for label in labels]
    rows = Rows(rows_of(labels, repeats=1))
    if None in names:
        with pytest.raises(DataError, match=f"Row {names.index(None)} has no source"):
            encode_sources(rows, "source")
    else:
        encoded = encode_sources(rows, "source")
        assert encoded.sizes == Counter(names)
        assert [encoded.names[row[SOURCE_KEY]] for row in encoded.dataset] == names


@pytest.mark.parametrize(("labels", "names"), LABELS[:4])
def test_the_selector_takes_labels(labels: list[Any], names: list[str]) -> None:
    config = SelectionConfig(small_sources=(labels[1],))
    sizes = {labels[0]: 90, labels[1]: 10}
    selector = CoresetSelector(tiny_model("llama", num_hidden_layers=2), config, sizes)
    assert selector.small == {names[1]}
    batch = ragged_batch([5, 6, 7, 8, 5, 6, 7, 8])
    coreset = selector.select(batch, [labels[0]] * 6 + [labels[1]] * 2)
    assert {6, 7} <= set(coreset.indices.tolist())
    assert set(selector.commit().pool) == set(names)
    with pytest.raises(DataError, match="Row 1 of the pool has no source: its 'sources' is None"):
        selector.select(batch, [labels[0], None, *[labels[0]] * 6])
    with pytest.raises(DataError, match="has source 'z', which source_sizes does not list"):
        selector.select(batch, ["z"] * 8)


@pytest.mark.parametrize("label", MISSING, ids=repr)
def test_missing_labels_are_refused_in_a_custom_loop(label: Any) -> None:
    model = tiny_model("llama", num_hidden_layers=2)
    selector = CoresetSelector(model, SelectionConfig(small_sources="none"))
    with pytest.raises(DataError, match="Row 3 of the pool has no source"):
        selector.select(ragged_batch([5, 6, 7, 8]), ["a", "a", "b", label])
    with pytest.raises(ConfigError, match="source_sizes names the source"):
        CoresetSelector(model, SelectionConfig(), {"a": 5, label: 6})


def test_integer_sources_reach_the_record(tmp_path: Path) -> None:
    rows = mixture().map(lambda row: {"source": "abcd".index(row["source"])})
    numbered = coreset_trainer(tmp_path / "numbers", train_dataset=rows.cast_column("source", rows.features["source"]))
    named = coreset_trainer(tmp_path / "names")
    assert set(numbered.source_sizes) == {"0", "1", "2", "3"}
    for trainer in (numbered, named):
        set_seed(0)
        trainer.train()
    as_numbers = dict(zip("abcd", "0123", strict=True))
    for one, other in zip(lines(tmp_path / "numbers"), lines(tmp_path / "names"), strict=True):
        for key in ("pool", "kept"):
            assert one[key] == {as_numbers[name]: held for name, held in other[key].items()}


# ---- Rows without labels to learn ----


def unlearnable(rows: Dataset, sources: str, keep: int = 0) -> Dataset:
    """Take the labels of all rows of the sources but the first few; a label on a row's first token is none."""
    left = Counter[str]()

    def blank(row: dict[str, Any]) -> dict[str, Any]:
        left[row["source"]] += 1
        return (
            row
            if row["source"] not in sources or left[row["source"]] <= keep
            else {"labels": [5, *[-100] * (len(row["labels"]) - 1)]}
        )

    return rows.map(blank, load_from_cache_file=False)


@pytest.mark.parametrize("kind", ["columns", "formatted", "rows", "stream", "hub stream"])
def test_only_rows_with_a_label_make_a_source_large(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    rows = unlearnable(unlearnable(mixture(), "a", keep=2), "d")
    before = Counter(mixture()["source"])
    changes = {"args": {"max_steps": 2}} if "stream" in kind else {}
    trainer = coreset_trainer(tmp_path, train_dataset=KINDS[kind](rows.to_list()), **changes)
    left = {"a": 2, "b": before["b"], "c": before["c"], "d": 0}
    assert trainer.source_sizes == left
    assert trainer.selector.small == {"a", "c"}
    assert f"'d' {before['d']} of {before['d']} (none is left), 'a' {before['a'] - 2} of {before['a']}" in caplog.text
    if kind == "formatted":
        return  # this collator takes lists
    trainer.train()
    assert all(line["unlabelled"] for line in lines(tmp_path))
    kept = Counter(name for line in lines(tmp_path) for name, held in line["kept"].items() for _ in held)
    assert kept["d"] == 0


def test_errors_without_trainable_rows(tmp_path: Path) -> None:
    rows = unlearnable(mixture(), "c")
    count = list(rows["source"]).count("c")
    message = f"small_sources names 'c', which has {count} rows, but none has a labeled token. The other sources"
    with pytest.raises(ConfigError, match=message):
        coreset_trainer(tmp_path, train_dataset=rows, selection=SelectionConfig(small_sources=("c",)))
    with pytest.raises(DataError, match="None of the 96 rows of train_dataset has a labeled token"):
        coreset_trainer(tmp_path, train_dataset=unlearnable(rows, "abcd"))
    without = mixture().remove_columns("labels")  # the collator creates them
    encoded = encode_sources(without, "source")
    assert count_learnable(encoded.dataset, encoded.names) == encoded.sizes


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.sampled_from([-100, 3]), max_size=5)), min_size=1, max_size=12
    )
)
def test_learnable_rows_are_counted_the_same_in_columns_and_rows(made: list[tuple[str, list[int]]]) -> None:
    rows = [{"source": name, "labels": labels} for name, labels in made]
    right = Counter(row["source"] for row in rows if any(label != -100 for label in row["labels"][1:]))
    for dataset in (
        Dataset.from_list([*rows, {"source": "a", "labels": [1]}]),
        Rows([*rows, {"source": "a", "labels": [1]}]),
    ):
        encoded = encode_sources(dataset, "source")
        assert count_learnable(encoded.dataset, encoded.names) == {name: right[name] for name in encoded.names}


def test_a_streams_source_counts_once_it_has_a_labeled_row() -> None:
    running = RunningSizes({"a": 3, "b": 0})
    assert running.sizes == {"a": 3, "b": 0}
    assert not running.meet(["b"])
    running.add({"a": [1], "b": [2]})
    assert running.sizes == {"a": 4, "b": 1}


# ---- TRL, which drops rows ----


def sft_trainer(folder: Path, rows: list[dict[str, Any]], *, stream: bool = False, **changes: Any) -> Any:
    tokenizer = train_tiny_tokenizer([row["prompt"] + row["completion"] for row in text_rows()])
    dataset = Dataset.from_list(rows)
    return CoresetSFTTrainer(
        build_tiny_model(tokenizer),
        sft_settings(folder, max_length=40, max_steps=2, **changes.pop("args", {})),
        train_dataset=dataset.to_iterable_dataset() if stream else dataset,
        processing_class=tokenizer,
        **changes,
    )


def with_long_rows(label: Any = "papers") -> list[dict[str, Any]]:
    long = "What of this? " * 40
    return [
        *({**row, "prompt": long} if i % 3 else row for i, row in enumerate(text_rows())),
        *({"source": label, "prompt": long, "completion": " yes"} for _ in range(30)),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_the_small_source_rule_uses_the_rows_that_trl_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    trainer = sft_trainer(tmp_path, with_long_rows(), stream=stream)
    coded = Counter(trainer._source_names[row[SOURCE_KEY]] for row in trainer.train_dataset)
    assert coded == Counter(row["source"] for i, row in enumerate(text_rows()) if i % 3 == 0)
    assert trainer.source_sizes == {**coded, "papers": 0}
    assert trainer.selector.small == {name for name, size in coded.items() if size * len(coded) < sum(coded.values())}
    assert "within max_length=40 and are dropped: 'papers' 30 of 30 (none is left)" in caplog.text
    trainer.train()
    assert all(line["unlabelled"] == 0 and "papers" not in line["pool"] for line in lines(tmp_path))


def test_a_list_that_names_a_source_dropped_by_trl_is_reported(tmp_path: Path) -> None:
    message = "small_sources names 'true', which has 30 rows, but none has a labeled token within max_length=40"
    rows = [{**row, "source": row["source"] == "papers"} for row in with_long_rows()]
    with pytest.raises(ConfigError, match=message):
        sft_trainer(tmp_path, rows, selection=SelectionConfig(small_sources=(True,)))
    trainer = sft_trainer(tmp_path, rows, selection=SelectionConfig(small_sources=(False,)))
    assert trainer.selector.small == {"false"}


def test_trl_drops_every_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="None of the 30 rows of train_dataset has a labeled token within max_length"):
        sft_trainer(tmp_path, with_long_rows()[-30:])
