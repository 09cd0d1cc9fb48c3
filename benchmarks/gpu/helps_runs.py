"""One run of the part "does it help": a fresh model trained on coresets, its losses by source, its answers."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from helps_clock import Clock, Tell
from helps_rows import Losses, Rows, row_losses
from helps_trainers import Run, Size, make_trainer
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PrinterCallback, set_seed

from colm.lab.evaluate.judge import Generation, answer_questions, summarise_answers
from colm.lab.run.adapters import add_lora
from colm.losses import example_losses
from colm.models import load_model, load_tokenizer
from colm.step.record import FILE_NAME, StepLog

LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
"""As in the experiment `lora` on the CPU. No dropout, so that the methods of a seed differ only in their rows."""
CHECKED = 8
"""Number of rows whose losses are computed in two ways."""


class Bench:
    """Everything that all runs share, loaded once: base weights on the CPU, rows, questions, tokenizer.

    Args:
        place: the output folder of `tokenized.write`.
        device: of the runs.
        size: of the runs.
    """

    def __init__(self, place: Path, device: torch.device, size: Size) -> None:
        self.place, self.device, self.size = place, device, size
        self.tokenizer = load_tokenizer(str(place / "tokenizer"))
        self.rows = Rows(place, size.batch, self.tokenizer.pad_token_id)
        self.base = self._load_base()

    def _load_base(self) -> Any:
        """Load the model. The floats of a GGUF file are cached, since decoding takes far longer than reading them."""
        if self.rows.model != "demo":
            return load_model(str(self.place / self.rows.model))
        kept = self.place / "base"
        if (kept / "done").exists():
            return load_model(str(kept))
        model = load_model("demo")
        with suppress(OSError, SafetensorError):  # no space, or a read-only folder
            model.save_pretrained(kept)
            (kept / "done").touch()
        return model

    def fresh(self, seed: int) -> Any:
        """Return a copy of the model on the CPU, with the same adapter for all methods of a seed."""
        model = copy.deepcopy(self.base)
        set_seed(seed)
        return add_lora(model, LORA)

    def autocast(self) -> Any:
        """Return the Trainer's precision: bfloat16 on the GPU."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def train(self, run: Run, steps: int, *, tell: Tell, left: Callable[[], float]) -> tuple[dict[str, Any], Any]:
        """Train, and return the run's figures and the model.

        Args:
            run: the training.
            steps: the length of the run and its schedule.
            tell: called with each evaluation.
            left: returns the seconds left to the part.

        Raises:
            OutOfTimeError: no seconds are left.
            ValueError: a loss is not finite.
        """
        cuda = self.device.type == "cuda"
        release(self.device)
        model = self.fresh(run.seed)
        init = digest([parameter for parameter in model.parameters() if parameter.requires_grad])
        with TemporaryDirectory() as folder:
            place = Path(folder)
            trainer = make_trainer(run, self.size, steps, model, self.rows, self.tokenizer, self.device, place)
            clock = Clock(self, steps, self.size.every, tell, left)
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(clock)
            set_seed(run.shuffle)  # like colm train: the row order is drawn from here
            trainer.train()
            log = place / FILE_NAME
            lines = list(StepLog(log).read()) if log.exists() else []
        steps = trainer.state.global_step
        features = getattr(trainer, "_features", None)  # of the rows, if they were put in an order
        figures = {
            "method": run.method,
            "seed": run.seed,
            "rate": run.rate,
            "steps": steps,
            "pool": self.size.pool,
            "kept": lines[-1]["kept_count"] if lines else run.rows(self.size),
            # The plain Trainer's rows are not counted: its runs end before the last, shorter batch of a pass.
            "rows": sum(line["kept_count"] for line in lines) if lines else steps * run.rows(self.size),
            "order_seconds": round(features.seconds, 4) if features else None,
            "seconds": round(clock.elapsed, 4),
            "selection_seconds": round(sum(line["seconds"] for line in lines), 4),
            "peak_gib": round(clock.peak / 2**30, 3) if cuda else None,
            "nonfinite": sum(line["nonfinite"] for line in lines),
            "match": mean_of([line["match"] for line in lines]),
            "match_random": mean_of([line["match_random"] for line in lines]),
            "pools": None if features or not lines else digest_of([line["pool"] for line in lines]),
            "init": init,
            "evaluations": clock.evaluations,
        }
        return figures, model

    def warm_up(self, run: Run) -> None:
        """Train two steps that are not counted: kernels and libraries are slow on first use."""
        self.train(run, 2, tell=lambda line: None, left=lambda: math.inf)

    def evaluate(self, model: Any) -> Losses:
        """Return each source's mean loss over its validation rows, as `colm train` measures it."""
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), self.autocast():
                return self.rows.losses(model, self.device)
        finally:
            model.train(training)

    def base_losses(self) -> tuple[Losses, float]:
        """Return the losses before training, and their largest difference from the losses of full, masked logits."""
        model = self.base.to(self.device)
        try:
            losses = self.evaluate(model)
            batch = self.rows.batches[0].part(CHECKED).to(self.device)
            with torch.no_grad():
                logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits
                apart = example_losses(logits, batch.labels) - row_losses(model, batch)
            return losses, float(apart.abs().max())
        finally:
            self.base.to("cpu")

    def adapter_path(self, run: Run) -> Path:
        """Return where a finished run's adapter is stored for the questions. It stays on the machine."""
        return self.place / "adapters" / f"{run.seed}.{run.name}.safetensors"

    def keep_adapter(self, run: Run, model: Any) -> None:
        """Write a finished run's adapter."""
        path = self.adapter_path(run)
        held = get_peft_model_state_dict(model)
        with suppress(OSError, SafetensorError):  # the questions then skip this adapter
            path.parent.mkdir(exist_ok=True)
            save_file({name: value.detach().cpu().contiguous() for name, value in held.items()}, path)

    def answer(self, run: Run | None) -> dict[str, Any]:
        """Return the shares of right answers of a finished run; for None, of the model before training.

        The adapter is merged into the weights, so that a token takes half as many kernels.
        """
        release(self.device)
        if run is None:
            model = copy.deepcopy(self.base)
        else:
            adapted = self.fresh(run.seed)
            set_peft_model_state_dict(adapted, load_file(self.adapter_path(run)))
            model = adapted.merge_and_unload()
        model.to(self.device)
        start = time.monotonic()
        how = Generation(max_new_tokens=self.size.new_tokens, batch_size=4 * self.size.batch)
        batches = answer_questions(model, self.tokenizer, self.rows.questions, self.rows.prompts, how)
        lines = [line for batch in batches for line in batch]
        found = summarise_answers(lines, {}, None)
        return {
            "seconds": round(time.monotonic() - start, 3),
            "questions": len(lines),
            "macro": round(found["all"]["macro"]["value"], 6),
            "cut_off": sum(line["cut_off"] for line in lines),
            "no_answer": sum(line["extracted"] is None for line in lines),
            "sources": {name: round(held["exact"]["value"], 6) for name, held in found["sources"].items()},
        }


def digest_of(pools: list[Any]) -> str:
    """Return a text that differs if a row of a pool does."""
    return hashlib.sha256(json.dumps(pools).encode()).hexdigest()[:12]


def digest(tensors: list[Tensor]) -> str:
    """Return a text that differs if a number does."""
    hasher = hashlib.sha256()
    for tensor in tensors:
        hasher.update(tensor.detach().cpu().numpy().tobytes())
    return hasher.hexdigest()[:12]


def mean_of(values: list[float | None]) -> float | None:
    """Return the mean of the values that are not None."""
    held = [value for value in values if value is not None]
    return round(sum(held) / len(held), 6) if held else None


def release(device: torch.device) -> None:
    """Free the GPU memory that the last run left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
