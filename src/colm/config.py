"""Every setting of the selection, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from colm.config_checks import (
    DirectionName,
    FeatureName,
    HeadName,
    LossName,
    Metric,
    OrderBy,
    OrderName,
    PassDtypeName,
    PickName,
    Related,
    ShortenName,
    WeightName,
)
from colm.config_parts import Budget, Features, Pass, Pick, Spsa
from colm.errors import ConfigError
from colm.hints import Count, CountOrZero, Fraction, Positive, Range, Seed, hints_of
from colm.step.sources import SourceName
from colm.typed import check_keys, read_value

PRESETS: dict[str, dict[str, Any]] = {
    "colm": {"features": "exact"},
    "colm-spsa": {"features": "spsa", "spsa_probes": 1, "spsa_directions": "fixed"},
    "matched": {
        "features": "exact",
        "pick": "direction",
        "by_source": False,
        "adam": False,
        "shorten": "sketch",
        "weights": "fitted",
        "carry": 0.95,
    },
    "control": {"features": "none"},
}
"""Values that ``preset`` stands for: the method with exact gradients, as in the paper's code, with the pool's mean
gradient matched instead of medoids, and the control."""


Share = Annotated[float, Range(0, 1, open="least")]


@dataclass(frozen=True)
class SelectionConfig(Related):
    """How a coreset is chosen from each pool. The defaults are the method of the paper with exact
    gradients instead of its zeroth-order estimate.

    Set exactly one of `keep` and `keep_count`; with neither, ``keep`` is 0.5.

    Raises:
        ConfigError: a value is outside its range; the message gives the range.

    Example:
        >>> SelectionConfig(keep=0.25).kept_rows(pool_rows=128, slots=8)
        32
    """

    keep: Annotated[Share | None, "a number above 0 and at most 1; use keep_count for a number of rows"] = None
    """Fraction of the pool to keep, in (0, 1]."""

    keep_count: Count | None = None
    """Rows of the global pool to keep, at least 1. The alternative to `keep`."""

    keep_schedule: Annotated[
        tuple[tuple[CountOrZero, Share], ...], "a list of [step, keep], such as [[0, 1.0], [100, 0.5]]"
    ] = ()
    """Points [optimizer step, keep] with linear interpolation between them, instead of `keep`:
    ``[[0, 1.0], [100, 0.5]]`` starts with whole pools and keeps half from step 100 on."""

    warmup_steps: CountOrZero = 0
    """Optimizer steps, at least 0, before the first selection pass. They sample rows of large sources at random, as
    ``features="none"`` does. To train whole pools at first, see `keep_schedule`."""

    every: Count = 1
    """Run the selection pass every `every` steps, at least 1. The other steps sample rows of large sources at
    random."""

    features: FeatureName = "exact"
    """What rows of large sources are compared by. ``exact``: per-example gradients of the last value projection.
    ``spsa``: their zeroth-order estimate, as in the paper. ``none``: no selection pass; rows of large sources are
    sampled at random within the same quotas. This is the control, the baseline for any claim about the gradients. Other
    baselines: the ``mean_hidden`` or ``last_hidden`` state of the last layer, a row's ``loss``, or its
    ``gradient_norm``; `adam` and `coordinates` do not apply to these."""

    metric: Metric = "l1"
    """Distance between sparsified features in the facility location."""

    pick: PickName = "medoids"
    """How rows are picked by their features, within each source. ``medoids``: the paper's facility
    location. To compare with: ``largest`` norm (or loss), ``middle`` of the ranking by norm (or loss),
    ``direction`` (greedily, so that the picks' mean points where the mean of all rows points),
    ``sample`` (at random with chances in proportion to the norm)."""

    weights: WeightName = "uniform"
    """How much a kept row counts in the training loss. ``uniform``: all rows count the same, as in the paper.
    ``represented``: a row counts as often as the pool rows that it represents: a medoid for its cluster, a sampled row
    for 1 / its probability, a row of a small source for itself. The loss then estimates the whole pool's.
    ``relative``: the same among the large sources, scaled to a mean of 1, and 1 for rows of small sources, which keeps
    the balance that uniform weights give to small sources. ``fitted``: 1 for rows of small sources; the other weights
    make the weighted sum nearest to that of as many average rows of large sources. Needs ``shorten="sketch"``."""

    carry: Fraction = 0.0
    """Fraction, from 0 to 1, of the residual between the large sources' mean gradient and the coresets so far that is
    added to the next target, so that no part of the gradient is left out for good. For ``pick="direction"`` with
    ``shorten="sketch"`` and ``by_source=False``."""

    balance: Fraction = 0.0
    """How far weights even out the sources, from 0 to 1: each row counts (its source's share of all
    examples)^-balance times, scaled to a mean of 1 over all examples. 0 leaves the mixture unchanged; 1 gives every
    source the same total weight. Applies to random rows, too, and to the target of matching. With
    ``small_sources="none"`` it replaces the rule that keeps small sources whole."""

    by_source: bool = True
    """Pick from each large source its share of the budget; if false, from all of them as one."""

    adam: bool = True
    """Turn each gradient into the step that Adam would take with it, with the optimizer's own betas and eps. An
    optimizer without two betas turns this off."""

    coordinates: Count = 2560
    """h, how many coordinates of the feature are compared, at least 1, at most D."""

    shorten: ShortenName = "largest"
    """Where the h coordinates come from. ``largest``: those with the largest mean in each source, the paper's
    sparsification. ``sketch``: all D, added up at random with random signs, which preserves inner products between
    rows of all sources; for ``pick="direction"``, not for the l1 metric."""

    small_sources: Annotated[
        Literal["auto", "none"] | tuple[SourceName, ...], "'auto', 'none', or a list of source names"
    ] = "auto"
    """Sources whose pool rows are all kept. ``auto``: those with fewer examples than the uniform
    share, all examples / number of sources. ``none``, or an explicit list of names; a number or truth value in it is
    the source with that label."""

    order: OrderName = "random"
    """The order of the rows in a pass. ``random``: a new random order in each pass. ``balanced``: the rows of each pass
    are dealt into its steps so that the features of what was trained so far stay at the mean of all rows, see
    `order_by`. If not all rows are kept, those of the pass are drawn at once instead of pool by pool. For
    ``features="none"``, or ``keep=1.0``, in the trainers and `MixtureBatchSampler`. Of a stream, each window of rows is
    drawn and dealt on its own."""

    order_by: OrderBy = "tokens"
    """Features for ``order="balanced"``. ``tokens``: which tokens a row has. ``sources``: its source. Else, not for
    streams, the path of a file with one vector for each training row: a ``.npy`` array (rows, d), or a ``.parquet``
    file whose column ``features`` has lists of d numbers."""

    loss: LossName = "example"
    """``example``: every kept example counts the same (the paper's uniform weights). ``token``: the
    Trainer's own mean over labeled tokens, counted over the kept rows."""

    spsa_probes: Count = 1
    """Random directions per step for ``features="spsa"``, at least 1."""

    spsa_eps: Positive = 1e-3
    """Length of the finite difference, in units of the weight, above 0."""

    spsa_directions: DirectionName = "fresh"
    """Draw new SPSA directions each step, or use those of the first step throughout (``fixed``)."""

    value_module: str | None = None
    """Dotted path of the module whose weight's gradient is the feature, for models whose last value projection cannot
    be detected automatically. May be any `nn.Linear`."""

    pass_tokens: Count | None = None
    """Padded tokens in one micro-batch of the selection pass, at least 1 (a longer row goes
    alone). Default: as many as the largest micro-batch of the pool holds."""

    pass_labels: Count | None = None
    """Labeled tokens of each row, the first ones, at least 1, that the selection pass sees; rows are cut after
    them. Default: all. Fewer tokens make features cheaper and a little less accurate; see docs/results/speed.md."""

    pass_dtype: PassDtypeName | None = None
    """Autocast of the selection pass alone: ``bfloat16`` for a model that is trained in float32. Default: the
    training's precision, or your own loop's autocast."""

    train_head: HeadName = "labeled"
    """Positions on which the output head runs in training. ``labeled``: those with a target, which gives the same
    gradients as ``all`` in less time and memory. ``chunked``: the same, `head_chunk_tokens` at a time, whose logits are
    computed again in the backward: the least memory, with a large vocabulary. ``fused``: the same in Liger's kernel, on
    a GPU with ``pip install 'colm[fused]'``; experimental, not yet tested on a GPU. A model for which the kernel does
    not work runs in chunks, one for which none of these work on all positions, and the log says why. TRL's trainer has
    its own head, which this does not affect."""

    head_chunk_tokens: Count | None = None
    """Labeled tokens that go through the output head at a time in the selection pass, and in training with
    ``train_head="chunked"``, at least 1. Default: as many as make 256 MiB of float32 logits."""

    padding_free: bool = False
    """Train the kept rows without padding: each micro-batch is one row, of all its examples one after the other, which
    do not see each other. The same losses and gradients; faster if attention takes sequences of any length, as
    FlashAttention on a GPU does. The selection pass is not affected. A model that cannot keep joined rows apart trains
    padded rows, and the log says why."""

    reuse_forward: bool = False
    """With gradient checkpointing: keep the layers' inputs from the selection pass and train the kept rows from them,
    so that their forward runs only once. Takes memory for the layers' inputs of the whole pool, as checkpointing
    the pool in one micro-batch does; see `reuse_offload`. Needs a model without dropout, and padding on the right."""

    reuse_offload: bool = False
    """Store what `reuse_forward` keeps in host memory, at the cost of copying it there and back."""

    noise_every: CountOrZero = 50
    """Optimizer steps between two measurements of the gradient noise scale: the number of rows at which a step's
    gradient is as much signal as noise. 0 turns it off. A measurement takes about a forward of the kept rows and
    changes nothing in the training. If a model cannot be measured, the log says why."""

    log_sources: bool = True
    """Write the rows, tokens, loss and shares of each source to the Trainer's log. Set it to false with hundreds of
    sources; ``selection.jsonl`` always has these figures."""

    seed: Seed = 0
    """Seed of the selection's own random draws; at least 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "keep_schedule", tuple((step, float(keep)) for step, keep in self.keep_schedule))
        if not isinstance(self.small_sources, str):
            object.__setattr__(self, "small_sources", tuple(self.small_sources))
        self.check()
        if self.keep is None and self.keep_count is None and not self.keep_schedule:
            object.__setattr__(self, "keep", 0.5)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SelectionConfig:
        """Make a config from a mapping, such as a section of a YAML file.

        The key ``preset`` names a set of values (`PRESETS`) that the other keys change. Numbers and truth values may be
        written as text: ``"0.25"``, ``"no"``.

        Raises:
            ConfigError: for an unknown key, with the nearest known one, or a value out of range.
        """
        values = dict(values)
        preset = read_value("preset", Literal[tuple(PRESETS)], values.pop("preset", "colm"))
        check_keys(values, hints_of(cls), kind="selection setting")
        return cls(**{**PRESETS[preset], **values})

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values that YAML and JSON can hold."""
        values = asdict(self)
        if isinstance(self.small_sources, tuple):
            values["small_sources"] = list(self.small_sources)
        values["keep_schedule"] = [list(point) for point in self.keep_schedule]
        return values

    @property
    def budget(self) -> Budget:
        """How many rows a step keeps, and which steps have a selection pass."""
        schedule = self.keep_schedule if self.keep is None else ((0, self.keep),)
        return Budget(self.keep_count or schedule, self.warmup_steps, self.every)

    @property
    def measured(self) -> Features | None:
        """What rows of large sources are compared by; None if they are drawn at random."""
        if self.features == "none":
            return None
        adam = self.adam and self.features in ("exact", "spsa")
        spsa = Spsa(self.spsa_probes, self.spsa_eps, self.spsa_directions == "fixed")
        return Features(self.features, adam, self.value_module, spsa if self.features == "spsa" else None)

    @property
    def selection_pass(self) -> Pass:
        """What the selection pass sees of a row, and how much goes through the model at a time."""
        return Pass(self.pass_tokens, self.pass_labels, self.pass_dtype, self.head_chunk_tokens)

    @property
    def picking(self) -> Pick:
        """How rows of large sources are picked by their features, and weighted."""
        return Pick(
            by=self.pick,
            metric=self.metric,
            coordinates=self.coordinates,
            shorten=self.shorten,
            by_source=self.by_source,
            weights=self.weights,
            carry=self.carry,
        )

    def kept_rows(self, pool_rows: int, slots: int, *, step: int = 0) -> int:
        """Return K for a pool: the budget, at least one row a slot, at most the pool.

        Args:
            pool_rows: N, labeled rows in the pool over all ranks.
            slots: ranks x micro-batches, each of which needs a row.
            step: optimizer steps before this one.
        """
        return min(pool_rows, max(slots, self.budget.rows(pool_rows, step)))

    def selects_at(self, step: int) -> bool:
        """Return whether the step after `step` others has a selection pass."""
        return self.features != "none" and self.budget.selects_at(step)

    def check_pool(self, pool_rows: int, slots: int) -> None:
        """Check before training that a whole pool can give every micro-batch a kept row.

        Raises:
            ConfigError: the pool is too small for `keep_count`, or keeps fewer rows than slots.
        """
        if self.keep_count is not None and self.keep_count > pool_rows:
            raise ConfigError(
                f"keep_count={self.keep_count} is above the pool of {pool_rows} rows (batch size x accumulation "
                "steps x ranks); lower keep_count or enlarge the pool."
            )
        budget = self.budget.least_rows(pool_rows)
        if budget < slots:
            raise ConfigError(
                f"A pool of {pool_rows} rows keeps {budget}, fewer than its {slots} micro-batches "
                f"(accumulation steps x ranks), so some would be empty; keep at least {slots} rows, or use fewer "
                "accumulation steps with a larger batch size."
            )
