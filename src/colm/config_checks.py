"""The choices among the settings of the selection, and which combinations of settings are invalid."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from colm.errors import ConfigError
from colm.hints import Form
from colm.typed import Settings

FeatureName = Literal["exact", "spsa", "mean_hidden", "last_hidden", "loss", "gradient_norm", "none"]
Metric = Literal["l1", "l2", "cosine"]
LossName = Literal["example", "token"]
HeadName = Literal["all", "labeled", "chunked", "fused"]
DirectionName = Literal["fresh", "fixed"]
PickName = Literal["medoids", "largest", "middle", "direction", "sample"]
WeightName = Literal["uniform", "represented", "relative", "fitted"]
ShortenName = Literal["largest", "sketch"]
PassDtypeName = Literal["bfloat16", "float16"]
OrderName = Literal["random", "balanced"]

FEATURE_FILES = (".npy", ".parquet")
OrderBy = Annotated[
    str,
    Form(
        r"^(tokens|sources)$|\.(npy|parquet)$",
        "'tokens', 'sources', or a .npy or .parquet file with one vector for each row",
    ),
]


class Related(Settings):
    """The settings of `SelectionConfig` that depend on each other, and the checks of their combinations."""

    keep: float | None
    keep_count: int | None
    keep_schedule: tuple[tuple[int, float], ...]
    features: FeatureName
    pass_labels: int | None
    pass_dtype: PassDtypeName | None
    padding_free: bool
    reuse_forward: bool
    reuse_offload: bool
    metric: Metric
    shorten: ShortenName
    pick: PickName
    by_source: bool
    carry: float
    weights: WeightName
    balance: float
    loss: LossName
    order: OrderName
    order_by: str

    @property
    def weighs(self) -> bool:
        """Whether kept rows may count differently."""
        return self.weights != "uniform" or self.balance > 0

    def check(self) -> None:
        """Check the combinations.

        Raises:
            ConfigError: names the settings, their values, and what to change.
        """
        for check in (_check_keep, _check_features, _check_reuse, _check_weights, _check_order):
            check(self)


def _check_keep(config: Related) -> None:
    if config.keep_schedule and (config.keep is not None or config.keep_count is not None):
        raise ConfigError(
            f"keep_schedule and keep={config.keep} or keep_count={config.keep_count} are both set; the schedule says "
            "at each step what to keep, so leave the other out."
        )
    if config.keep is not None and config.keep_count is not None:
        raise ConfigError(
            f"keep={config.keep} and keep_count={config.keep_count} are both set; set exactly one: "
            "keep is a fraction of the pool, keep_count a number of rows."
        )
    if any(then <= step for (step, _), (then, _) in pairwise(config.keep_schedule)):
        raise ConfigError(
            f"keep_schedule={config.keep_schedule} must have increasing steps, such as [[0, 1.0], [100, 0.5]]."
        )


def _check_features(config: Related) -> None:
    if config.features == "none" and config.pick != "medoids":
        raise ConfigError(
            f"pick={config.pick!r} needs features to pick by, but features='none' draws at random; choose features."
        )
    if config.shorten == "sketch" and config.pick == "medoids" and config.metric == "l1":
        raise ConfigError(
            "shorten='sketch' keeps inner products, not l1 distances: use metric='l2' or 'cosine', or another pick."
        )
    if config.metric == "cosine" and config.features in ("loss", "gradient_norm"):
        raise ConfigError(
            f"metric='cosine' is always 0 between the positive numbers of features={config.features!r}; use 'l1'."
        )
    if config.pass_dtype is not None and config.features == "spsa":
        raise ConfigError(
            f"pass_dtype={config.pass_dtype!r} is too coarse for features='spsa', which relies on small "
            "differences of losses; leave it out, or use features='exact'."
        )


def _check_reuse(config: Related) -> None:
    if config.reuse_offload and not config.reuse_forward:
        raise ConfigError("reuse_offload=True moves what reuse_forward keeps; set reuse_forward=True too.")
    if not config.reuse_forward:
        return
    if config.padding_free:
        raise ConfigError(
            "reuse_forward=True trains kept rows from the states of the padded rows in the selection pass, but "
            "padding_free=True joins them; set one of them to False."
        )
    for name in ("pass_labels", "pass_dtype"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"reuse_forward=True trains from the selection pass's forward, but {name}={getattr(config, name)!r} "
                f"makes it another one; leave {name} out, or set reuse_forward=False."
            )
    if config.features in ("none", "spsa"):
        reason = "runs no selection pass" if config.features == "none" else "runs the last layer with changed weights"
        raise ConfigError(
            f"reuse_forward=True trains from the selection pass's forward, but features={config.features!r} {reason};"
            " use features='exact', or set reuse_forward=False."
        )


def _check_weights(config: Related) -> None:
    if config.loss == "token" and config.weighs:
        raise ConfigError(
            f"weights={config.weights!r} and balance={config.balance} weigh examples, but loss='token' averages over "
            "tokens; use loss='example'."
        )
    if config.weights == "fitted" and (config.shorten != "sketch" or config.features not in ("exact", "spsa")):
        raise ConfigError(
            f"weights='fitted' fits gradients of all sources at once, which needs features='exact' (or 'spsa') and "
            f"shorten='sketch'; they are {config.features!r} and {config.shorten!r}."
        )
    if config.carry and (config.pick != "direction" or config.shorten != "sketch" or config.by_source):
        raise ConfigError(
            f"carry={config.carry} needs pick='direction', shorten='sketch' and by_source=False; they are "
            f"{config.pick!r}, {config.shorten!r} and {config.by_source}."
        )


def _check_order(config: Related) -> None:
    if config.order == "balanced" and config.features != "none" and config.keep != 1.0:
        kept = f"keep_count={config.keep_count}" if config.keep_count is not None else f"keep={config.keep or 0.5}"
        kept = "a keep_schedule" if config.keep_schedule else kept
        raise ConfigError(
            f"order='balanced' draws the rows of a whole pass at once, so it needs features='none' (preset: control), "
            f"or keep=1.0; they are {config.features!r} and {kept}."
        )
