"""Every setting of the selection, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from colm.errors import ConfigError, suggest
from colm.schedule import check_schedule, keep_at, selects_at

FeatureName = Literal["exact", "spsa", "mean_hidden", "last_hidden", "loss", "gradient_norm", "none"]
Metric = Literal["l1", "l2", "cosine"]
LossName = Literal["example", "token"]
DirectionName = Literal["fresh", "fixed"]
PickName = Literal["medoids", "largest", "middle", "direction", "sample"]
WeightName = Literal["uniform", "represented", "relative", "fitted"]
ShortenName = Literal["largest", "sketch"]
PassDtypeName = Literal["bfloat16", "float16"]

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


@dataclass(frozen=True)
class SelectionConfig:
    """How a coreset is chosen from each pool. The defaults are the method of the paper with exact
    gradients instead of its zeroth-order estimate.

    Set exactly one of `keep` and `keep_count`; with neither, ``keep`` is 0.5.

    Raises:
        ConfigError: a value is outside its range; the message gives the range.

    Example:
        >>> SelectionConfig(keep=0.25).kept_rows(pool_rows=128, slots=8)
        32
    """

    keep: float | None = None
    """Fraction of the pool to keep, in (0, 1]."""

    keep_count: int | None = None
    """Rows of the global pool to keep, at least 1. The alternative to `keep`."""

    keep_schedule: tuple[tuple[int, float], ...] = ()
    """Points [optimiser step, keep] with straight lines between them, in the place of `keep`:
    ``[[0, 1.0], [100, 0.5]]`` begins with whole pools and keeps half from step 100 on."""

    warmup_steps: int = 0
    """Optimiser steps, at least 0, that keep big sources' rows at random, as ``features="none"`` does, before the
    first selection pass. Memory is as with it; to train whole pools at first, see `keep_schedule`."""

    every: int = 1
    """A selection pass at each so manieth step, at least 1; the steps between keep big sources' rows at random."""

    features: FeatureName = "exact"
    """What the medoids are found among. ``exact``: per-example gradients of the last value
    projection. ``spsa``: their zeroth-order estimate as in the paper. ``none``: no selection pass,
    big sources sampled at random within the same quotas, which is the control that any claim for
    the gradients must beat. Baselines to compare with: ``mean_hidden`` and ``last_hidden`` states
    of the last layer (over a row's tokens, or at its last one), its ``loss``, its
    ``gradient_norm``; these are taken as they are, so `adam` and `coordinates` do not apply."""

    metric: Metric = "l1"
    """Distance between sparsified features in the facility location."""

    pick: PickName = "medoids"
    """How rows are picked by their features, within each source. ``medoids``: the paper's facility
    location. To compare with: ``largest`` norm (or loss), ``middle`` of the ranking by norm (or loss),
    ``direction`` (greedily, so that the picks' mean points where the mean of all rows points),
    ``sample`` (at random with chances in proportion to the norm)."""

    weights: WeightName = "uniform"
    """How much a kept row counts in the training loss. ``uniform``: all the same, as in the paper.
    ``represented``: as many rows of the pool as it stands for: a medoid for its cluster, a sampled row for
    1 / its chance, a row of a small source for itself. The loss then estimates the whole pool's.
    ``relative``: as represented among the big sources, 1 in the mean there, and rows of small sources 1, which keeps
    the balance that uniform weights give to small sources. ``fitted``: rows of small sources 1, the others such
    that their weighted sum is nearest to that of as many average rows of big sources; needs ``shorten="sketch"``."""

    carry: float = 0.0
    """Share, from 0 to 1, of what the coresets so far lacked of the big sources' mean gradient that the next one
    makes up for, so that no part of it is left out for good. For ``pick="direction"`` with ``shorten="sketch"`` and
    ``by_source=False``."""

    balance: float = 0.0
    """How far sources are evened out by weights, from 0 to 1: each row counts (its source's share of all
    examples)^-balance times, scaled to 1 in the mean over all examples. 0: as they come; 1: every source as
    much in all. Applies to random rows too, and to what is matched. With ``small_sources="none"`` it takes the
    place of the rule that keeps small sources whole, also in pools from which they alone would fill the coreset."""

    by_source: bool = True
    """Pick from each big source its share of the budget; false: from all of them as one."""

    adam: bool = True
    """Turn gradients into the step that Adam would take with each. Uses the optimiser's own betas
    and eps; an optimiser without two betas turns it off."""

    coordinates: int = 2560
    """h, how many coordinates of the feature are compared, at least 1, at most D."""

    shorten: ShortenName = "largest"
    """Where the h coordinates come from. ``largest``: each source's own of largest mean, the paper's
    sparsification. ``sketch``: all D, added up at random with random signs, which keeps inner products of
    rows of all sources; for ``pick="direction"`` and the like, not for the l1 metric."""

    small_sources: Literal["auto", "none"] | tuple[str, ...] = "auto"
    """Sources whose pool rows are all kept. ``auto``: those with fewer examples than the uniform
    share, all examples / number of sources. ``none``, or an explicit list of names."""

    loss: LossName = "example"
    """``example``: every kept example counts the same (the paper's uniform weights). ``token``: the
    Trainer's own mean over labelled tokens, counted again over the kept rows."""

    spsa_probes: int = 1
    """Random directions per step for ``features="spsa"``, at least 1."""

    spsa_eps: float = 1e-3
    """Length of the finite difference, in units of the weight, above 0."""

    spsa_directions: DirectionName = "fresh"
    """Draw new SPSA directions each step, or use those of the first step throughout (``fixed``)."""

    value_module: str | None = None
    """Dotted path of the module whose weight's gradient is the feature, for models whose last
    value projection is not found by itself. Any Linear."""

    pass_tokens: int | None = None
    """Padded tokens in one micro-batch of the selection pass, at least 1 (a longer row goes
    alone). Default: as many as the largest micro-batch of the pool holds."""

    pass_labels: int | None = None
    """Labelled tokens of each row, the first ones, at least 1, that the selection pass sees; rows are cut behind
    them. Default: all. Cheaper features, a little less good; see docs/results/speed.md."""

    pass_dtype: PassDtypeName | None = None
    """Autocast of the selection pass alone: ``bfloat16`` for a model that is trained in float32. Default: as the
    training goes, or your own loop's autocast."""

    head_chunk_tokens: int | None = None
    """Labelled tokens that go through the output head at a time in the selection pass, at least 1.
    Default: as many as make 256 MiB of float32 logits."""

    reuse_forward: bool = False
    """With gradient checkpointing: keep the layers' inputs from the selection pass and train the kept rows from them,
    so that their forward is not paid twice. Takes memory for the layers' inputs of the whole pool, as checkpointing
    the pool in one micro-batch does; see `reuse_offload`. Needs a model without dropout, and padding on the right."""

    reuse_offload: bool = False
    """Hold what `reuse_forward` keeps in host memory, at the cost of copying it there and back."""

    log_sources: bool = True
    """Write each source's figures into the Trainer's log: rows, tokens, loss and shares. With hundreds of
    sources these are many; ``selection.jsonl`` has them in any case."""

    seed: int = field(default=0)
    """Seed of the selection's own random draws; at least 0."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_schedule", check_schedule(self.keep_schedule))
        if self.keep_schedule and (self.keep is not None or self.keep_count is not None):
            raise ConfigError(
                f"keep_schedule and keep={self.keep} or keep_count={self.keep_count} are both set; the schedule says "
                "at each step what to keep, so leave the other out."
            )
        if self.keep is None and self.keep_count is None and not self.keep_schedule:
            object.__setattr__(self, "keep", 0.5)
        if self.keep is not None and self.keep_count is not None:
            raise ConfigError(
                f"keep={self.keep} and keep_count={self.keep_count} are both set; set exactly one: "
                "keep is a fraction of the pool, keep_count a number of rows."
            )
        if self.keep is not None and not (_is_number(self.keep) and 0 < self.keep <= 1):
            raise ConfigError(f"keep={self.keep!r} is outside (0, 1]; use keep_count for a number of rows.")
        _require_count("keep_count", self.keep_count, minimum=1)
        _require_count("coordinates", self.coordinates, minimum=1)
        _require_count("spsa_probes", self.spsa_probes, minimum=1)
        _require_count("pass_tokens", self.pass_tokens, minimum=1)
        _require_count("pass_labels", self.pass_labels, minimum=1)
        _require_count("head_chunk_tokens", self.head_chunk_tokens, minimum=1)
        _require_count("seed", self.seed, minimum=0)
        _require_count("warmup_steps", self.warmup_steps, minimum=0)
        _require_count("every", self.every, minimum=1)
        if not (_is_number(self.spsa_eps) and self.spsa_eps > 0):
            raise ConfigError(f"spsa_eps={self.spsa_eps!r} must be a number above 0, such as 1e-3.")
        for name, choices in (
            ("features", FeatureName),
            ("metric", Metric),
            ("loss", LossName),
            ("spsa_directions", DirectionName),
            ("pick", PickName),
            ("weights", WeightName),
            ("shorten", ShortenName),
        ):
            _require_choice(name, getattr(self, name), get_args(choices))
        for name in ("adam", "by_source", "log_sources", "reuse_forward", "reuse_offload"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} must be true or false.")
        if self.features == "none" and self.pick != "medoids":
            raise ConfigError(
                f"pick={self.pick!r} needs features to pick by, but features='none' draws at random; choose features."
            )
        if self.pass_dtype is not None:
            _require_choice("pass_dtype", self.pass_dtype, get_args(PassDtypeName))
            if self.features == "spsa":
                raise ConfigError(
                    f"pass_dtype={self.pass_dtype!r} rounds away the differences of losses that features='spsa' lives "
                    "on; leave it out, or use features='exact'."
                )
        for name in ("pass_labels", "pass_dtype"):
            if self.reuse_forward and getattr(self, name) is not None:
                raise ConfigError(
                    f"reuse_forward=True trains from the selection pass's forward, but {name}={getattr(self, name)!r} "
                    f"makes it another one; leave {name} out, or set reuse_forward=False."
                )
        if self.reuse_offload and not self.reuse_forward:
            raise ConfigError("reuse_offload=True moves what reuse_forward keeps; set reuse_forward=True too.")
        if self.reuse_forward and self.features in ("none", "spsa"):
            reason = "runs no selection pass" if self.features == "none" else "runs the last layer with changed weights"
            raise ConfigError(
                f"reuse_forward=True trains from the selection pass's forward, but features={self.features!r} {reason};"
                " use features='exact', or set reuse_forward=False."
            )
        if self.loss == "token" and (self.weights != "uniform" or self.balance):
            raise ConfigError(
                f"weights={self.weights!r} and balance={self.balance} weigh examples, but loss='token' averages over "
                "tokens; use loss='example'."
            )
        if self.weights == "fitted" and (self.shorten != "sketch" or self.features not in ("exact", "spsa")):
            raise ConfigError(
                f"weights='fitted' fits gradients of all sources at once, which needs features='exact' (or 'spsa') and "
                f"shorten='sketch'; they are {self.features!r} and {self.shorten!r}."
            )
        if not (_is_number(self.balance) and 0 <= self.balance <= 1):
            raise ConfigError(f"balance={self.balance!r} must be a number from 0 to 1, such as 0.3.")
        if not (_is_number(self.carry) and 0 <= self.carry <= 1):
            raise ConfigError(f"carry={self.carry!r} must be a number from 0 to 1, such as 0.95.")
        if self.carry and (self.pick != "direction" or self.shorten != "sketch" or self.by_source):
            raise ConfigError(
                f"carry={self.carry} needs pick='direction', shorten='sketch' and by_source=False; they are "
                f"{self.pick!r}, {self.shorten!r} and {self.by_source}."
            )
        if self.shorten == "sketch" and self.pick == "medoids" and self.metric == "l1":
            raise ConfigError(
                "shorten='sketch' keeps inner products, not l1 distances: use metric='l2' or 'cosine', or another pick."
            )
        if self.metric == "cosine" and self.features in ("loss", "gradient_norm"):
            raise ConfigError(
                f"metric='cosine' is always 0 between the positive numbers of features={self.features!r}; use 'l1'."
            )
        if isinstance(self.small_sources, str):
            _require_choice("small_sources", self.small_sources, ("auto", "none"), or_else="a list of source names")
        elif isinstance(self.small_sources, list | tuple) and all(isinstance(s, str) for s in self.small_sources):
            object.__setattr__(self, "small_sources", tuple(self.small_sources))
        else:
            raise ConfigError(
                f"small_sources={self.small_sources!r} is not 'auto', 'none', or a list of source names (texts)."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SelectionConfig:
        """Make a config from a mapping, such as a section of a YAML file.

        The key ``preset`` names a set of values (`PRESETS`) that the other keys change.

        Raises:
            ConfigError: for an unknown key, with the nearest known one, or a value out of range.
        """
        values = dict(values)
        preset = values.pop("preset", "colm")
        if preset not in PRESETS:
            raise ConfigError(f"preset={preset!r} is not one of {', '.join(PRESETS)}.{suggest(str(preset), PRESETS)}")
        values = {**PRESETS[preset], **values}
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"Unknown selection setting {key!r}.{suggest(key, known)} Known settings: {', '.join(known)}."
                )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values that YAML and JSON can hold."""
        values = asdict(self)
        if isinstance(self.small_sources, tuple):
            values["small_sources"] = list(self.small_sources)
        values["keep_schedule"] = [list(point) for point in self.keep_schedule]
        return values

    @property
    def weighs(self) -> bool:
        """Whether kept rows may count differently."""
        return self.weights != "uniform" or self.balance > 0

    def kept_rows(self, pool_rows: int, slots: int, *, step: int = 0) -> int:
        """Return K for a pool: the budget, at least one row a slot, at most the pool.

        Args:
            pool_rows: N, labelled rows in the pool over all ranks.
            slots: ranks x micro-batches, each of which needs a row.
            step: optimiser steps before this one.
        """
        return min(pool_rows, max(slots, self._budget(pool_rows, step)))

    def selects_at(self, step: int) -> bool:
        """Return whether the step after `step` others has a selection pass."""
        return self.features != "none" and selects_at(step, warmup_steps=self.warmup_steps, every=self.every)

    def _budget(self, pool_rows: int, step: int) -> int:
        if self.keep_count is not None:
            return self.keep_count
        keep = keep_at(self.keep_schedule, step) if self.keep_schedule else self.keep
        assert keep is not None
        return round(keep * pool_rows)

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
        # The least that a schedule of straight lines keeps is at one of its points.
        budget = min(self._budget(pool_rows, step) for step, _ in self.keep_schedule or ((0, None),))
        if budget < slots:
            raise ConfigError(
                f"A pool of {pool_rows} rows keeps {budget}, fewer than its {slots} micro-batches "
                f"(accumulation steps x ranks), so some would be empty; keep at least {slots} rows, or use fewer "
                "accumulation steps with a larger batch size."
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_count(name: str, value: object, *, minimum: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(f"{name}={value!r} must be a whole number of at least {minimum}.")


def _require_choice(name: str, value: object, choices: tuple[str, ...], *, or_else: str = "") -> None:
    if value not in choices:
        options = ", ".join(repr(choice) for choice in choices) + (f", or {or_else}" if or_else else "")
        raise ConfigError(f"{name}={value!r} is not one of {options}.{suggest(str(value), choices)}")
