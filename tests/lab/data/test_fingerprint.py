"""Fingerprints depend on the training content of rows, not on their storage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from tests.support.models import tiny_model

from colm.lab.data import fingerprint
from colm.lab.data.fingerprint import describe_difference, fingerprint_data, fingerprint_model

ROWS: list[dict[str, Any]] = [
    {"source": "a", "input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
    {"source": "b", "input_ids": [4, 5], "labels": [-100, 5]},
    {"source": "a", "input_ids": [6], "labels": [6]},
]


def digest(rows: Dataset) -> str:
    return fingerprint_data(rows, None, "source")["train"]["digest"]


def test_storage_does_not_matter() -> None:
    rows = Dataset.from_list(ROWS)
    narrow = {"source": Value("large_string"), "input_ids": List(Value("int32")), "labels": List(Value("int64"))}
    pieces = concatenate_datasets([rows.select([0]), rows.select([1, 2])])
    turned = Dataset.from_list(ROWS[::-1]).select([2, 1, 0])
    masked = Dataset.from_list([{**row, "attention_mask": [1] * len(row["labels"])} for row in ROWS])
    for same in (rows.cast(Features(narrow)), pieces, turned, masked, rows.with_format("torch")):
        assert digest(same) == digest(rows)


@pytest.mark.parametrize(
    "change",
    [
        {"source": "c"},
        {"input_ids": [1, 2, 4]},
        {"labels": [-100, -100, 3]},
        {"input_ids": [1, 2], "labels": [-100, 2]},
    ],
)
def test_every_change_of_a_row_matters(change: dict[str, Any]) -> None:
    assert digest(Dataset.from_list([{**ROWS[0], **change}, *ROWS[1:]])) != digest(Dataset.from_list(ROWS))


def test_order_and_row_boundaries_matter() -> None:
    assert digest(Dataset.from_list(ROWS[::-1])) != digest(Dataset.from_list(ROWS))
    moved = [ROWS[0], {**ROWS[1], "input_ids": [4, 5, 6], "labels": [-100, 5, 6]}]
    moved.append({**ROWS[2], "input_ids": [], "labels": []})
    assert digest(Dataset.from_list(moved)) != digest(Dataset.from_list(ROWS))


def test_differences_are_described() -> None:
    rows = Dataset.from_list(ROWS)
    held = fingerprint_data(rows, rows.select([0, 1]), "source")
    assert held["validation"]["rows"] == 2
    assert describe_difference(held, held) is None
    fewer = fingerprint_data(rows.select([0, 1]), None, "source")
    told = describe_difference(held, fewer)
    assert told is not None
    assert told.startswith(f"3 training rows ({held['train']['digest'][:8]}) before, 2 (")
    assert "; 2 held-out rows (" in told


def test_the_digest_of_held_out_rows_begins_a_batch_at_each_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs have stored it, and check it when they resume."""
    monkeypatch.setattr(fingerprint, "BATCH", 3)
    rows = Dataset.from_list(
        [
            {"source": "abc"[i % 3], "input_ids": [i, i + 1, *range(i)], "labels": [-100] * (i + 1) + [i]}
            for i in range(14)
        ]
    )
    by_source = rows.select(sorted(range(14), key=lambda row: row % 3))
    found = fingerprint_data(rows, by_source, "source")
    assert found["train"]["digest"] == "00956dc4be589933fc341533b04c4851"
    assert found["validation"] == {"rows": 14, "digest": "b8730b32ddc86a8201b233fb82c78e5c"}


def test_a_model_is_known_by_the_weights_in_its_files(tmp_path: Path) -> None:
    folder, moved = tmp_path / "model", tmp_path / "moved"
    model = tiny_model()
    model.save_pretrained(folder)
    known = fingerprint_model(str(folder))
    (folder / "training_args.bin").write_bytes(b"1")
    folder.rename(moved)
    assert fingerprint_model(str(moved)) == known != {}
    for weight in model.parameters():  # any tensor that was trained
        before = weight.detach().clone()
        with torch.no_grad():
            weight += 1e-3
        model.save_pretrained(folder)
        found = fingerprint_model(str(folder))
        difference = describe_difference(known, found)
        assert difference is not None
        assert difference.startswith("the model's files had other weights (")
        with torch.no_grad():
            weight.copy_(before)
    for unknown in ({}, fingerprint_model("org/name"), fingerprint_model(str(tmp_path))):
        assert describe_difference(unknown, found) is describe_difference(found, unknown) is None


@pytest.mark.parametrize("size", [0, 1, fingerprint.SAMPLE - 1, fingerprint.SAMPLE, 3 * fingerprint.SAMPLE, 2**25])
def test_a_large_file_is_sampled_from_its_first_to_its_last_byte(tmp_path: Path, size: int) -> None:
    path = tmp_path / "weights.gguf"
    path.write_bytes(bytes(size))
    digests = {fingerprint_model(str(path))["model"]["digest"]}
    for place in {0, size - 1} if size else ():
        content = bytearray(size)
        content[place] = 1
        path.write_bytes(content)
        digests.add(fingerprint_model(str(path))["model"]["digest"])
    assert len(digests) == 1 + len({0, size - 1} if size else ())


@pytest.mark.parametrize(
    "content", [b"", b"1", b"\xff" * 100, bytes([2]) + bytes(7) + b"[]", bytes([7]) + bytes(7) + b'{"a":1}']
)
def test_a_damaged_file_is_left_to_the_loader(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert fingerprint_model(str(tmp_path))["model"]["files"] == 1
