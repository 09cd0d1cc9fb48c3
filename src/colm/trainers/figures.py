"""Selection metrics for the Trainer's log, from counts already on the host and losses computed in training.

The only work on the device is one transfer of the kept rows' losses when the Trainer logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from colm.step.ranks import sum_over_ranks
from colm.types import StepRecord


class SelectionFigures:
    """Counts over all steps of a run, including before a resume, and over the steps since the last log.

    Args:
        sources: all source names; a name's position is its code.
        by_source: include per-source metrics in the log.

    Attributes:
        seconds: wall-clock time of all steps, including selection.
        selection_seconds: wall-clock time of selection alone.
        pooled, kept, tokens: source -> rows seen, rows trained on, tokens trained on.
    """

    def __init__(self, sources: Sequence[str], *, by_source: bool) -> None:
        self._sources = list(sources)
        self._by_source = by_source
        self.reset()

    def reset(self) -> None:
        """Reset all counts."""
        self.seconds = 0.0
        self.selection_seconds = 0.0
        self.pooled = dict.fromkeys(self._sources, 0)
        self.kept = dict.fromkeys(self._sources, 0)
        self.tokens = dict.fromkeys(self._sources, 0)
        self._steps: list[StepRecord] = []  # since the last log
        self._losses: list[tuple[Tensor, Tensor]] = []  # per micro-batch since then: losses (n,), codes (n,)

    def add_sources(self, sources: Sequence[str]) -> None:
        """Add new names; `sources` holds all names, with the new ones at the end."""
        for name in sources[len(self._sources) :]:
            self._sources.append(name)
            for totals in (self.pooled, self.kept, self.tokens):
                totals.setdefault(name, 0)

    def add_step(self, record: StepRecord) -> None:
        """Count a committed step."""
        self._steps.append(record)
        self.seconds += record.step_seconds or 0.0
        self.selection_seconds += record.seconds
        for totals, rows in ((self.pooled, record.pool), (self.kept, record.kept)):
            for name, held in rows.items():
                totals[name] += len(held)
        for name, count in record.tokens.items():
            self.tokens[name] += count

    def add_losses(self, losses: Tensor, codes: Tensor) -> None:
        """Store the training losses (n,) of a micro-batch's rows and their source codes (n,) int64, -1 to ignore."""
        if self._by_source:
            self._losses.append((losses.detach(), codes))

    def take_log(self) -> dict[str, float]:
        """Return the metrics since the last call, and reset them; empty without a step. All ranks must call it."""
        steps, losses = self._steps, self._losses
        self._steps, self._losses = [], []
        if not steps:
            return {}
        selection = sum(record.seconds for record in steps)
        whole = sum(record.step_seconds or 0.0 for record in steps)
        found = {
            "coreset_pool": _mean([record.pool_count for record in steps]),
            "coreset_kept": _mean([record.kept_count for record in steps]),
            "coreset_small_kept": _mean([record.small_kept for record in steps]),
            "coreset_nonfinite": float(sum(record.nonfinite for record in steps)),
            "selection_seconds": round(selection / len(steps), 4),
            "selection_share": round(selection / whole, 4) if whole > 0 else 0.0,
        }
        for key in ("match", "match_random"):
            cosines = [value for record in steps if (value := getattr(record, key)) is not None]
            if cosines:
                found[f"coreset_{key}"] = round(_mean(cosines), 4)
        noise = next((record.noise for record in reversed(steps) if record.noise is not None), None)
        if noise is not None and noise.overall is not None:
            found["noise_scale"] = round(noise.overall, 4)
        if noise is not None and self._by_source:
            found |= {f"noise_scale/{name}": round(scale, 4) for name, scale in noise.sources.items()}
        return found | self._log_of_sources(steps, losses) if self._by_source else found

    def _log_of_sources(self, steps: list[StepRecord], losses: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Return each source's mean rows and tokens per step, mean loss, and share of training so far."""
        found: dict[str, float] = {}
        rows_so_far, tokens_so_far = max(1, sum(self.kept.values())), max(1, sum(self.tokens.values()))
        means = self._mean_losses(losses)
        for name in self._sources:
            found[f"pool/{name}"] = _mean([len(record.pool.get(name, ())) for record in steps])
            found[f"kept/{name}"] = _mean([len(record.kept.get(name, ())) for record in steps])
            found[f"tokens/{name}"] = _mean([record.tokens.get(name, 0) for record in steps])
            found[f"share/{name}"] = round(self.kept[name] / rows_so_far, 6)
            found[f"token_share/{name}"] = round(self.tokens[name] / tokens_so_far, 6)
            if name in means:
                found[f"loss/{name}"] = means[name]
        return found

    def _mean_losses(self, losses: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Return the mean training loss of each source's rows, over all ranks."""
        if not losses:
            return {}
        values = torch.cat([part for part, _ in losses])
        codes = torch.cat([part for _, part in losses])
        values, codes = values[codes >= 0], codes[codes >= 0]
        sums = values.new_zeros(2, len(self._sources), dtype=torch.float64 if values.device.type == "cpu" else None)
        sums[0].index_add_(0, codes, values.to(sums))
        sums[1].index_add_(0, codes, torch.ones_like(values, dtype=sums.dtype))
        totals, rows = sum_over_ranks(sums).tolist()
        return {
            name: round(total / count, 6)
            for name, total, count in zip(self._sources, totals, rows, strict=True)
            if count
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the counts over all steps."""
        names = ("seconds", "selection_seconds", "pooled", "kept", "tokens")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by `state_dict`."""
        self.reset()
        self.seconds, self.selection_seconds = float(state["seconds"]), float(state["selection_seconds"])
        for name in ("pooled", "kept", "tokens"):
            getattr(self, name).update(state[name])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
