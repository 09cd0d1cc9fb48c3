"""Where a rank's models are while rows get their sources; how many tables the rows become."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.support.commands import write_run
from tests.support.files import write_lines

from colm.lab.run import prepare
from colm.lab.run.resume import fingerprint_run
from colm.lab.run.settings import load_settings
from colm.lab.sources.relabel import Relabelled

ROWS = [{"source": "a", "prompt": f"{i}?", "completion": f"{i}"} for i in range(8)]


class FakeGpus:
    """What torch.cuda is asked and told, without a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.current = 0
        self.emptied: list[int] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "device", self._within)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self.emptied.append(self.current))

    @contextmanager
    def _within(self, number: int) -> Iterator[None]:
        before, self.current = self.current, number
        yield
        self.current = before


@pytest.mark.parametrize(
    ("rank", "count", "embedding", "expected"),
    [("2", 4, "model", 2), (None, 4, "model", 0), ("2", 1, "sentence", 0), ("2", 4, "tfidf", None)],
)
def test_a_rank_embeds_on_its_own_gpu(
    rank: str | None,
    count: int,
    embedding: str,
    expected: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus = FakeGpus(monkeypatch, count)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    placed = []
    model = SimpleNamespace(to=lambda device: placed.append((str(device), gpus.current)))
    monkeypatch.setattr(prepare, "load_base", lambda named, dtype, tokenizer: model)
    monkeypatch.setattr(prepare, "load_named_tokenizer", lambda name: None)

    def relabel(train: list[Dataset], validation: list[Dataset], *args: Any, tuned: Any, **options: Any) -> Any:
        tuned.load()
        return Relabelled(train, validation, None)

    monkeypatch.setattr("colm.lab.sources.relabel.relabel_parts", relabel)
    Dataset.from_list(ROWS).to_json(str(tmp_path / "rows.jsonl"))
    settings = f"{{model: some, data: {{train: {tmp_path}/rows.jsonl}}, output_dir: {tmp_path}/run}}"
    (tmp_path / "run.yaml").write_text(settings)
    changes = ["sources.cluster.clusters=2", f"sources.cluster.embedding={embedding}"]
    prepare.read_rows_of(load_settings(str(tmp_path / "run.yaml"), changes))
    assert placed == [("cuda", expected or 0)]
    assert gpus.emptied == ([] if expected is None else [expected])
    assert gpus.current == 0


def test_many_sources_are_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables made and copied cost milliseconds each, so that thousands of sources would take minutes."""
    made = [0]
    build = Dataset.__init__

    def count(self: Dataset, *given: Any, **options: Any) -> None:
        made[0] += 1
        build(self, *given, **options)

    monkeypatch.setattr(Dataset, "__init__", count)
    found = []
    for sources in (3, 60):
        rows = [{"source": f"s{i % sources:02}", "prompt": f"{i}?", "completion": f"{i}"} for i in range(120)]
        write_lines(tmp_path / "rows.jsonl", rows)
        settings = load_settings(write_run(tmp_path / f"{sources}"), [f"data.train={tmp_path}/rows.jsonl"])
        made[0] = 0
        data = prepare.prepare_data(settings)
        assert data.validation is not None
        held = data.validation["source"][:]
        assert held == sorted(held)
        assert set(held) == {row["source"] for row in rows}
        fingerprint_run(settings, data)
        prepare.largest_token(data)
        found.append(made[0])
    assert found[0] == found[1]
