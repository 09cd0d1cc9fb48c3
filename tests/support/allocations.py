"""Measure the allocations of a real step from PyTorch's own record, exact on any machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from colm import CoresetSelector, SelectionConfig
from colm.losses import example_losses, mean_over_examples


def peak_bytes(action: Callable[[], Any]) -> int:
    """Return the peak allocation while `action` runs, above the initial allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    return recorded_peak(profiler)


def recorded_peak(profiler: Any) -> int:
    """Return the same from a profile recorded with ``profile_memory=True``."""
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class RealRun:
    """A model of random weights, prepared as the Trainer does, with its optimizer, after one step."""

    def __init__(
        self,
        config: Any,
        *,
        lora: dict[str, Any] | None,
        checkpointing: bool,
        bf16: bool,
        rows: int,
        micro_batches: int,
        tokens: int,
        keep: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        from accelerate.utils import convert_outputs_to_fp32
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        if lora is not None:
            from peft import LoraConfig, get_peft_model

            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
        if checkpointing:
            model.activation_checkpointing_enable()
            if lora is not None:
                model.enable_input_require_grads()
        self.model = model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=True)
        self.selector = CoresetSelector(
            model, SelectionConfig(keep=keep, small_sources="none"), optimizer=self.optimizer
        )
        if bf16:  # after the selector, as in the trainers
            model.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype=torch.bfloat16)(model.forward))
        self.pool = [self._batch(rows, tokens, config.vocab_size) for _ in range(micro_batches)]
        self.coreset_step()  # optimizer state and history are there from the second step on

    @property
    def held(self) -> int:
        """Bytes of parameters, buffers and optimizer state."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(storage.nbytes() for storage in {tensor.untyped_storage() for tensor in tensors})

    def train(self, batches: list[dict[str, Any]]) -> None:
        for batch in batches:
            self._loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def coreset_step(self) -> None:
        self.train(self.selector.take(self.pool, self.select()))
        self.selector.commit()

    def select(self) -> Any:
        return self.selector.select(self.pool, ["pool"] * sum(len(batch["labels"]) for batch in self.pool))

    @staticmethod
    def cut(batch: dict[str, Any], rows: int) -> dict[str, Any]:
        """Return the last rows of a micro-batch, with the padding."""
        return {key: value[-rows:] for key, value in batch.items()}

    def _loss(self, batch: dict[str, Any]) -> torch.Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"} | {"use_cache": False}
        losses = example_losses(self.model(**inputs).logits, batch["labels"], batch.get("cu_seq_lens_q"))
        return mean_over_examples(losses, batch["labels"], num_examples=8)

    @staticmethod
    def _batch(rows: int, tokens: int, vocabulary: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(1, vocabulary, (rows, tokens))
        mask = torch.ones_like(ids)
        mask[-1, -1] = 0
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
