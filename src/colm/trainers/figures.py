"""Selection metrics for the Trainer's log, from counts already on the host and losses computed in training.

The only work on the device is one transfer of the kept rows' losses when the Trainer logs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from colm.step.ranks import sum_over_ranks
from colm.types import NoiseScale, StepRecord

HELD = 1000
"""Micro-batches whose losses are held at most: without logs, a long run would hold those of all."""


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
        self._start_log()

    def _start_log(self) -> None:
        self._steps = 0  # since the last log
        self._sums: Counter[str] = Counter()  # of their figures
        self._noise: NoiseScale | None = None  # the last one
        self._losses: list[tuple[Tensor, Tensor]] = []  # per micro-batch: losses (n,), codes (n,)
        self._earlier: Tensor | None = None  # of micro-batches that are no longer held, see `_sum_losses`

    def add_sources(self, sources: Sequence[str]) -> None:
        """Add new names; `sources` holds all names, with the new ones at the end."""
        for name in sources[len(self._sources) :]:
            self._sources.append(name)
            for totals in (self.pooled, self.kept, self.tokens):
                totals.setdefault(name, 0)

    def add_step(self, record: StepRecord) -> None:
        """Count a committed step."""
        self._steps += 1
        self._sums.update(_figures_of(record, by_source=self._by_source))
        self._noise = self._noise if record.noise is None else record.noise
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
        if len(self._losses) >= HELD:
            self._earlier = self._sum_losses()
            self._losses = []

    def take_log(self) -> dict[str, float]:
        """Return the metrics since the last call, and reset them; empty without a step. All ranks must call it."""
        if not self._steps:
            self._start_log()
            return {}
        sums, steps, noise = self._sums, self._steps, self._noise
        found = {f"coreset_{key}": sums[key] / steps for key in ("pool", "kept", "small_kept")}
        found |= {
            "coreset_nonfinite": float(sums["nonfinite"]),
            "selection_seconds": round(sums["seconds"] / steps, 4),
            "selection_share": round(sums["seconds"] / sums["step_seconds"], 4) if sums["step_seconds"] > 0 else 0.0,
        }
        for key in ("match", "match_random"):
            if count := sums[f"{key} known"]:
                found[f"coreset_{key}"] = round(sums[key] / count, 4)
        if noise is not None and noise.overall is not None:
            found["noise_scale"] = round(noise.overall, 4)
        if noise is not None and self._by_source:
            found |= {f"noise_scale/{name}": round(scale, 4) for name, scale in noise.sources.items()}
        if self._by_source:
            found |= self._log_of_sources()
        self._start_log()
        return found

    def _log_of_sources(self) -> dict[str, float]:
        """Return each source's mean rows and tokens per step, mean loss, and share of training so far."""
        found: dict[str, float] = {}
        rows_so_far, tokens_so_far = max(1, sum(self.kept.values())), max(1, sum(self.tokens.values()))
        means = self._mean_losses()
        for name in self._sources:
            found |= {key: self._sums[key] / self._steps for key in (f"pool/{name}", f"kept/{name}", f"tokens/{name}")}
            found[f"share/{name}"] = round(self.kept[name] / rows_so_far, 6)
            found[f"token_share/{name}"] = round(self.tokens[name] / tokens_so_far, 6)
            if name in means:
                found[f"loss/{name}"] = means[name]
        return found

    def _mean_losses(self) -> dict[str, float]:
        """Return the mean training loss of each source's rows, over all ranks."""
        sums = self._sum_losses()
        if sums is None:
            return {}
        totals, rows = sum_over_ranks(sums).tolist()
        return {
            name: round(total / count, 6)
            for name, total, count in zip(self._sources, totals, rows, strict=True)
            if count
        }

    def _sum_losses(self) -> Tensor | None:
        """Return the sum of the losses of each source's rows since the last log, and their number, (2, sources)."""
        if not self._losses:
            return self._earlier
        values = torch.cat([part for part, _ in self._losses])
        codes = torch.cat([part for _, part in self._losses])
        values, codes = values[codes >= 0], codes[codes >= 0]
        sums = values.new_zeros(2, len(self._sources), dtype=torch.float64 if values.device.type == "cpu" else None)
        if self._earlier is not None:  # of fewer sources if a stream has shown others since
            sums[:, : self._earlier.shape[1]] = self._earlier
        sums[0].index_add_(0, codes, values.to(sums))
        sums[1].index_add_(0, codes, torch.ones_like(values, dtype=sums.dtype))
        return sums

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


def _figures_of(record: StepRecord, *, by_source: bool) -> dict[str, float]:
    """Return the figures of a step that are summed until the next log."""
    found = {
        "pool": record.pool_count,
        "kept": record.kept_count,
        "small_kept": record.small_kept,
        "nonfinite": record.nonfinite,
        "seconds": record.seconds,
        "step_seconds": record.step_seconds or 0.0,
    }
    for key in ("match", "match_random"):
        if (cosine := getattr(record, key)) is not None:
            found |= {key: cosine, f"{key} known": 1}
    if by_source:
        found |= {f"pool/{name}": len(rows) for name, rows in record.pool.items()}
        found |= {f"kept/{name}": len(rows) for name, rows in record.kept.items()}
        found |= {f"tokens/{name}": count for name, count in record.tokens.items()}
    return found
