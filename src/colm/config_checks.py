"""What the settings of the selection may be, and which combinations are invalid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from colm.errors import ConfigError, suggest
from colm.typed import LARGEST, show

if TYPE_CHECKING:
    from colm.config import SelectionConfig

FeatureName = Literal["exact", "spsa", "mean_hidden", "last_hidden", "loss", "gradient_norm", "none"]
Metric = Literal["l1", "l2", "cosine"]
LossName = Literal["example", "token"]
DirectionName = Literal["fresh", "fixed"]
PickName = Literal["medoids", "largest", "middle", "direction", "sample"]
WeightName = Literal["uniform", "represented", "relative", "fitted"]
ShortenName = Literal["largest", "sketch"]
PassDtypeName = Literal["bfloat16", "float16"]

CHOICES = {
    "features": FeatureName,
    "metric": Metric,
    "loss": LossName,
    "spsa_directions": DirectionName,
    "pick": PickName,
    "weights": WeightName,
    "shorten": ShortenName,
}
SWITCHES = ("adam", "by_source", "log_sources", "reuse_forward", "reuse_offload")
# The minimum of each number; an optional number may also be None.
COUNTS = {"coordinates": 1, "spsa_probes": 1, "seed": 0, "warmup_steps": 0, "every": 1}
OPTIONAL_COUNTS = {"keep_count": 1, "pass_tokens": 1, "pass_labels": 1, "head_chunk_tokens": 1}


def check_config(config: SelectionConfig) -> None:
    """Check each setting, then the combinations.

    Raises:
        ConfigError: names the setting, its value, and what it may be.
    """
    _check_values(config)
    _check_keep(config)
    _check_features(config)
    _check_reuse(config)
    _check_weights(config)


def require_count(name: str, value: object, *, minimum: int) -> None:
    """Check a whole number.

    Raises:
        ConfigError: the value is not a whole number, is below the minimum, or does not fit into 63 bits.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(f"{name}={show(value)} must be a whole number of at least {minimum}.")
    if value > LARGEST:
        raise ConfigError(f"{name}={show(value)} must be a whole number of at most {LARGEST}.")


def _check_values(config: SelectionConfig) -> None:
    for name, minimum in COUNTS.items():
        require_count(name, getattr(config, name), minimum=minimum)
    if config.seed >= 2**32:
        raise ConfigError(f"seed={show(config.seed)} must be below 2**32, as seeds of NumPy.")
    for name, minimum in OPTIONAL_COUNTS.items():
        if getattr(config, name) is not None:
            require_count(name, getattr(config, name), minimum=minimum)
    for name, choices in CHOICES.items():
        _require_choice(name, getattr(config, name), get_args(choices))
    for name in SWITCHES:
        if not isinstance(getattr(config, name), bool):
            raise ConfigError(f"{name}={getattr(config, name)!r} must be true or false.")
    if config.value_module is not None and not isinstance(config.value_module, str):
        raise ConfigError(f"value_module={config.value_module!r} must be the dotted path of a module, or null.")
    if not (_is_number(config.spsa_eps) and 0 < config.spsa_eps < float("inf")):
        raise ConfigError(f"spsa_eps={config.spsa_eps!r} must be a number above 0, such as 1e-3.")
    for name, example in (("balance", 0.3), ("carry", 0.95)):
        value = getattr(config, name)
        if not (_is_number(value) and 0 <= value <= 1):
            raise ConfigError(f"{name}={value!r} must be a number from 0 to 1, such as {example}.")
    listed: object = config.small_sources
    if isinstance(listed, str):
        _require_choice("small_sources", listed, ("auto", "none"), or_else="a list of source names")
    elif not isinstance(listed, list | tuple):
        raise ConfigError(f"small_sources={listed!r} is not 'auto', 'none', or a list of source names.")


def _check_keep(config: SelectionConfig) -> None:
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
    if config.keep is not None and not (_is_number(config.keep) and 0 < config.keep <= 1):
        raise ConfigError(f"keep={config.keep!r} is outside (0, 1]; use keep_count for a number of rows.")


def _check_features(config: SelectionConfig) -> None:
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
    if config.pass_dtype is not None:
        _require_choice("pass_dtype", config.pass_dtype, get_args(PassDtypeName))
        if config.features == "spsa":
            raise ConfigError(
                f"pass_dtype={config.pass_dtype!r} is too coarse for features='spsa', which relies on small "
                "differences of losses; leave it out, or use features='exact'."
            )


def _check_reuse(config: SelectionConfig) -> None:
    if config.reuse_offload and not config.reuse_forward:
        raise ConfigError("reuse_offload=True moves what reuse_forward keeps; set reuse_forward=True too.")
    if not config.reuse_forward:
        return
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


def _check_weights(config: SelectionConfig) -> None:
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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_choice(name: str, value: object, choices: tuple[str, ...], *, or_else: str = "") -> None:
    if value not in choices:
        options = ", ".join(repr(choice) for choice in choices) + (f", or {or_else}" if or_else else "")
        raise ConfigError(f"{name}={value!r} is not one of {options}.{suggest(str(value), choices)}")
