"""The next pool is collated, and its rows counted, in the data loader's workers; nothing else changes."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import skip_first_batches
from hypothesis import given
from hypothesis import strategies as st
from tests.support.trainers import collate, coreset_trainer, lines, mixture
from torch import Tensor
from torch.overrides import TorchFunctionMode

from colm import SelectionConfig
from colm.step.pool import Pool, RowSpans
from colm.trainers.columns import (
    INDEX_KEY,
    ON_HOST_KEY,
    SOURCE_KEY,
    CollatorWithCodes,
    set_codes_aside,
    silence_repeats,
)

NAMES = ["a", "b"]


class Reads(TorchFunctionMode):
    """Counts, by the file that calls, what would make the host wait if the tensor were a GPU's."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in {Tensor.tolist, Tensor.item, Tensor.cpu, Tensor.numpy, Tensor.nonzero, Tensor.__bool__}:
            self.found[Path(sys._getframe(1).f_code.co_filename).stem] += 1
        return func(*args, **(kwargs or {}))


@given(
    rows=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=4),
    left=st.booleans(),
    masked=st.booleans(),
)
def test_what_a_collator_says_is_what_a_pool_reads(rows: list[tuple[int, int]], left: bool, masked: bool) -> None:
    def pad(given: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = collate(given)
        batch = {key: value.flip(1) if left else value for key, value in batch.items()}
        return batch if masked else {key: value for key, value in batch.items() if key != "attention_mask"}

    collator = CollatorWithCodes(pad, "source")
    given = [
        {
            "input_ids": list(range(1, tokens + 1)),
            "attention_mask": [1] * tokens,
            "labels": [*([-100] * prompt), *range(tokens)][:tokens],
            SOURCE_KEY: number % 2,
            INDEX_KEY: number + 5,
        }
        for number, (tokens, prompt) in enumerate(rows)
    ]
    read = set_codes_aside([collator(given)], NAMES)
    collator.describes = True
    batch = collator(given)
    with Reads() as reads:
        told = set_codes_aside([batch], NAMES)
        pool = Pool(told.plain, spans=told.spans)
    assert not reads.found
    assert (told.sources, told.numbers) == (read.sources, read.numbers)
    assert read.spans == [None]
    expected = Pool(read.plain)
    assert vars(pool).keys() == vars(expected).keys()
    for name in ("side", "labelled", "lengths", "_where", "_spans"):
        assert getattr(pool, name) == getattr(expected, name)
    assert ON_HOST_KEY not in {*told.batches[0], *told.plain[0]}


def test_a_repeated_row_is_read_anew() -> None:
    collator = CollatorWithCodes(collate, "source")
    collator.describes = True
    rows = [{**row, SOURCE_KEY: 0, INDEX_KEY: number} for number, row in enumerate(mixture(4))]
    batch = collator(rows)
    assert isinstance(batch[ON_HOST_KEY].spans, RowSpans)
    aside = set_codes_aside([batch, silence_repeats(batch, 1)], NAMES)
    assert aside.spans[1] is None
    assert aside.numbers == [0, 1, 2, 3, 0, -1, -1, -1]
    assert Pool(aside.plain, spans=aside.spans).labelled[4:] == [Pool(aside.plain).labelled[0], 0, 0, 0]
    wrong = aside.spans[0]
    assert wrong is not None
    cut = [{key: value[:3] for key, value in aside.plain[0].items()}]
    assert len(Pool(cut, spans=[wrong])) == 3  # what does not fit is not believed


@pytest.mark.parametrize("broken", [{}, {"labels": torch.zeros(2)}, {"labels": [1, 2]}], ids=["none", "flat", "list"])
def test_a_batch_that_the_pool_would_refuse_is_passed_on(broken: dict[str, Any]) -> None:
    collator = CollatorWithCodes(lambda rows: {"input_ids": torch.zeros(2, 3), **broken}, "source")
    collator.describes = True
    assert ON_HOST_KEY not in collator([{SOURCE_KEY: 0, INDEX_KEY: 0}, {SOURCE_KEY: 0, INDEX_KEY: 1}])


def reads_of_fetching(folder: Path, **args: Any) -> dict[str, int]:
    """Return the reads while a pool is fetched and drawn from at random; all that is left are the host's own."""
    trainer = coreset_trainer(folder, selection=SelectionConfig(features="none"), args=args)
    trainer.state.max_steps = 1
    trainer.start_afresh()
    batches = iter(trainer.get_train_dataloader())
    with Reads() as reads:
        kept, _ = trainer.get_batch_samples(batches, 3, torch.device("cpu"))
    assert len(kept) == 3
    return {place: count for place, count in reads.found.items() if place in ("columns", "pool")}


def test_workers_leave_nothing_to_read_from_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reads_of_fetching(tmp_path / "ahead", dataloader_num_workers=1) == {}
    monkeypatch.setattr("colm.trainers.passes.prepare_ahead", lambda *args: None)
    before = reads_of_fetching(tmp_path / "before", dataloader_num_workers=1)
    assert before == {"columns": 6, "pool": 3}  # of three micro-batches


def test_a_whole_pool_lies_ready(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "colm")

    def ahead(**args: Any) -> Any:
        trainer = coreset_trainer(tmp_path, args={"gradient_accumulation_steps": 6, **args})
        loader = trainer.get_train_dataloader()
        assert trainer.args.dataloader_prefetch_factor == args.get("dataloader_prefetch_factor")
        return [each.base_dataloader.prefetch_factor for each in (loader, skip_first_batches(loader, 1))]

    assert ahead() == [None, None]
    assert "The data loader" not in caplog.text  # on a CPU
    assert ahead(dataloader_num_workers=1) == [6, 6]
    assert "collates the next pool while a step runs: 1 worker, up to 6 micro-batches ahead each." in caplog.text
    assert ahead(dataloader_num_workers=2) == [3, 3]
    assert ahead(dataloader_num_workers=1, dataloader_prefetch_factor=4) == [4, 4]
    assert caplog.text.count("while a step runs") == 3


def test_the_hint_on_a_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from colm.trainers.ahead import prepare_ahead

    caplog.set_level(logging.INFO, "colm")
    trainer = coreset_trainer(tmp_path)

    class OnGpu:
        device, dataloader_num_workers = torch.device("cuda"), 0

    prepare_ahead(trainer.get_train_dataloader(), OnGpu(), None)
    assert caplog.text.count("Set dataloader_num_workers=1") == 1


def test_batches_that_are_concatenated_hold_tensors_only(tmp_path: Path) -> None:
    stream = mixture(96).to_iterable_dataset()
    found = []
    for dispatch in (True, None):
        folder = tmp_path / str(dispatch)
        trainer = coreset_trainer(
            folder,
            train_dataset=stream,
            selection=SelectionConfig(features="none"),
            args={"max_steps": 2, "accelerator_config": {"dispatch_batches": dispatch}},
        )
        trainer.train()
        found.append(lines(folder))
        assert trainer.data_collator.describes == (dispatch is None)
    assert found[0] == found[1]


def test_a_worker_outlives_sigterm(tmp_path: Path) -> None:
    trainer = coreset_trainer(tmp_path, args={"dataloader_num_workers": 1})
    loader = iter(trainer.get_train_dataloader().base_dataloader)
    next(loader)
    (worker,) = loader._workers
    subprocess.run(["kill", str(worker.pid)], check=True)  # another process than the worker's own
    assert len(list(loader)) == 96 // 4 - 1
    again = iter(trainer.get_train_dataloader().base_dataloader)
    next(again)
    again._workers[0].terminate()  # as at the end of a process that left its loader open
    again._workers[0].join(10)
    assert again._workers[0].exitcode == 0
