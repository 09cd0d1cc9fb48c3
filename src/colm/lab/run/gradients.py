"""The gradient of each training row, as a short vector."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import DataCollatorForSeq2Seq

from colm.config_checks import PassDtypeName
from colm.config_parts import Features
from colm.features.factors import blocks
from colm.features.locate import locate_value_site
from colm.features.selection_pass import run_selection_pass
from colm.features.shorten import draw_sketch
from colm.lab.run.prepare import PreparedData
from colm.lab.run.settings import RunSettings
from colm.step.pool import IGNORE, Pool

READ = ("input_ids", "attention_mask", "labels")


class RowGradients:
    """Gradients of the last value projection, as the selection pass of a run reads them, not normalized by Adam.

    Pools have the run's size, so that memory suffices where it does for the run's selection.

    Args:
        model: as a run starts with it, on the device to use.
        settings: the run's settings.
        data: its rows, as tokens of the model.
        dimensions: numbers of a vector; a longer gradient is sketched, see `draw_sketch`.

    Raises:
        UnsupportedModelError: the model has no value projection that can be found.
    """

    def __init__(self, model: Any, settings: RunSettings, data: PreparedData, dimensions: int) -> None:
        arguments, limits = settings.arguments, settings.selection.selection_pass
        mixed: PassDtypeName | None = "bfloat16" if arguments["bf16"] else "float16" if arguments["fp16"] else None
        self._limits = replace(limits, dtype=limits.dtype or mixed)
        self._batch_rows = arguments["per_device_train_batch_size"]
        self._pool_rows = self._batch_rows * arguments["gradient_accumulation_steps"]
        self._wanted = Features("exact", adam=False, value_module=settings.selection.value_module, spsa=None)
        self._model, self._site = model, locate_value_site(model, self._wanted.value_module)
        self._sketch = draw_sketch(self._site.dim, dimensions, self._site.weight.device)
        self._rows, self._pad = data.train.select_columns(list(READ)), data.tokenizer.pad_token_id
        self._collate = DataCollatorForSeq2Seq(data.tokenizer, padding=True, label_pad_token_id=IGNORE)

    def __call__(self, rows: range) -> Iterator[np.ndarray]:
        """Yield the vectors of consecutive rows, (n, d) float32 each."""
        for start in range(rows.start, rows.stop, self._pool_rows):
            yield self._vectors(range(start, min(start + self._pool_rows, rows.stop)))

    def _vectors(self, rows: range) -> np.ndarray:
        starts = range(rows.start, rows.stop, self._batch_rows)
        pool = Pool([self._batch(range(at, min(at + self._batch_rows, rows.stop))) for at in starts], self._pad)
        features = run_selection_pass(
            self._model,
            self._site,
            pool,
            list(range(len(pool))),
            self._wanted,
            self._limits,
            generator=torch.Generator(),  # exact gradients draw nothing
        )
        numbers = torch.arange(len(features), device=features.device)
        parts = (features.rows(block) for block in blocks(numbers, features.dim, features.device))
        shortened = [part if self._sketch is None else self._sketch.apply(part) for part in parts]
        found: np.ndarray = torch.cat(shortened).cpu().numpy()
        return found

    def _batch(self, rows: range) -> dict[str, Any]:
        held = self._rows[rows.start : rows.stop]
        batch = self._collate([dict(zip(held, values, strict=True)) for values in zip(*held.values(), strict=True)])
        device = self._model.get_input_embeddings().weight.device
        return {name: batch[name].to(device) for name in READ}
