"""What a step sends over the network: the engine's weights and gradients, and what a selection adds."""

from __future__ import annotations

import math
from typing import NamedTuple

from colm.lab.plan.sharding import Sharding
from colm.noise import SKETCH

FACTS, NUMBER, FLAG = 4 * 8, 4, 8
"""Bytes of a row in `share_facts` (four int64), of a feature's coordinate (float32), and of `Features.finite`."""

KEYS = 3
"""Columns of a row that changes rank, int64: input_ids, attention_mask, labels."""


class Model(NamedTuple):
    """Sizes of a model, in bytes as they are communicated."""

    weights: int  # of all
    layers: int  # of those in layers
    trained: int


class Selection(NamedTuple):
    """Sizes of a step's selection, over all GPUs."""

    rows: int  # N, in the pool
    kept: int  # K
    tokens: int  # T, of a row
    sources: int  # from which rows are picked, each on its own
    coordinates: int  # h, at most D
    dim: int  # D, of a feature; 0 without features
    forwards: int  # of each GPU's selection pass
    adam: bool = True  # features are normalized, so their moments are summed too
    noise_every: int = 0  # steps between two noise measurements; 0 for none


class Traffic(NamedTuple):
    """Bytes that each GPU sends in a step; it receives as many.

    A ring all-gather or reduce-scatter of S bytes over W GPUs sends S (W - 1) / W from each, and an all-reduce twice
    that (Patarasuk and Yuan, 2009).
    """

    weights: int  # training gathers them
    gradients: int  # training reduces them
    selection_weights: int  # the selection pass gathers them
    features: int  # N h numbers
    sums: int  # of features (D,): one of each source, and those of the picks
    facts: int  # what all GPUs know of each row
    moved: int  # rows that change GPU
    noise: int  # sketches of kept rows, averaged over steps

    @property
    def engine(self) -> int:
        """What a step sends without a selection."""
        return self.weights + self.gradients

    @property
    def selection(self) -> int:
        """What the selection adds."""
        return sum(self) - self.engine


def count_traffic(sharding: Sharding, model: Model, selection: Selection, micro_batches: int) -> Traffic:
    """Return what a step sends.

    The engine's part: DistributedDataParallel reduces gradients once a step; so does ZeRO-1, ZeRO-2 in every
    micro-batch, and both gather the new weights. FSDP2 and ZeRO-3 gather weights for each forward, and those of layers
    again for each backward unless they stay.

    The selection's part, with n the rows of one GPU, follows its collectives in their order: `share_facts`, weights for
    each forward of the pass, `Features.finite`, and in `pick_from_features` a sum and the short features (N, h) of each
    source, then sums over the picks; `share_rows` gathers the rows that change GPU on all. Weights of the last layers,
    which its short backward gathers again, are left out, and so are counts of 8 bytes.

    Args:
        sharding: the engine and the number of GPUs.
        model: its sizes.
        selection: its sizes.
        micro_batches: of a GPU's step.
    """
    share = (sharding.gpus - 1) / sharding.gpus
    engine, rows, d = sharding.engine, selection.rows, selection.dim
    stays = not sharding.reshard if engine == "fsdp2" else False
    passes = 1 if stays else 2
    weights = {"ddp": 0, "zero1": model.trained, "zero2": model.trained}.get(
        engine, micro_batches * (model.weights + (passes - 1) * model.layers)
    )
    once = engine in ("ddp", "zero1") or (engine == "fsdp2" and sharding.deferred)
    gradients = model.trained * (1 if once else micro_batches) * (2 if engine == "ddp" else 1)
    picks = 3 if selection.adam else 1
    noise = selection.kept * min(SKETCH, d) * NUMBER / selection.noise_every if selection.noise_every else 0.0
    return Traffic(
        *(
            round(share * size)
            for size in (
                weights,
                gradients,
                selection.forwards * model.weights if sharding.splits_weights and d else 0,
                rows * min(selection.coordinates, d) * NUMBER,
                2 * d * NUMBER * (selection.sources + picks) if d else 0,
                rows * (FACTS + (FLAG if d else 0)),
                expected_moves(rows, selection.kept, sharding.gpus) * selection.tokens * KEYS * 8,
                0.0 if sharding.splits_moments else noise,
            )
        )
    )


def expected_moves(rows: int, kept: int, gpus: int) -> float:
    """Return how many kept rows change rank on average, if any rows are as likely to be kept.

    `deal_rows` gives each rank a run of K / W kept rows in order. At the boundary behind the first share f of the pool,
    as many rows change sides as the number kept before it differs from f K. That number is hypergeometric, with a
    variance of f (1 - f) N (K / N) (1 - K / N) N / (N - 1), and the mean of a normal variable's magnitude is
    (2 / pi)^(1/2) standard deviations. Swaps for equal tokens are left out.

    >>> round(expected_moves(4096, 2048, 64))
    640
    """
    if rows < 2:
        return 0.0
    share = kept / rows
    spread = rows * share * (1 - share) * rows / (rows - 1)
    return sum(math.sqrt(2 / math.pi * r / gpus * (1 - r / gpus) * spread) for r in range(1, gpus))
