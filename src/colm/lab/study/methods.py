"""The methods of `colm compare`: what each changes in a run's settings."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

from colm.config import PRESETS, SelectionConfig
from colm.errors import ConfigError
from colm.hints import Count, Range
from colm.lab.run.yaml12 import read_yaml
from colm.typed import check_keys, read_value


class Method(NamedTuple):
    """One way to choose the rows of a step, as changes to a run's settings."""

    what: str
    selection: Mapping[str, Any]
    pools: int = 1  # factor on the size of the configured pool
    grows: bool = False  # from an eighth of the pool in the first step to the whole pool in the last
    temperature: float | None = None  # of the sources' shares of the data, see `data.temperature`


# As in the literature, these ignore sources: they choose among all rows of the pool.
_WHOLE_POOL = {"small_sources": "none", "by_source": False}
_COLM = PRESETS["colm"]
_PLAIN = {
    "metric": "l1",
    "pick": "medoids",
    "weights": "uniform",
    "by_source": True,
    "adam": True,
    "shorten": "largest",
    "carry": 0.0,
    "order": "random",
}
"""Starting point of every method, regardless of the configuration, so that a name means the same everywhere."""

METHODS = {
    "random": Method("random rows, as many as the coreset", {"features": "none", **_WHOLE_POOL}),
    "random-n": Method("the whole pool, the large batch", {"features": "none", "keep": 1.0}),
    "random-2n": Method("a batch of twice the pool", {"features": "none", "keep": 1.0}, pools=2),
    "growing": Method(
        "random rows, at first an eighth of the pool and at last all", {"features": "none", **_WHOLE_POOL}, grows=True
    ),
    "temperature": Method(
        "random rows, small sources drawn more often", {"features": "none", **_WHOLE_POOL}, temperature=10 / 3
    ),
    "control": Method("small sources kept, large ones at random", PRESETS["control"]),
    "highest-loss": Method("rows of highest loss", {"features": "loss", "pick": "largest", **_WHOLE_POOL}),
    "gradient-norm": Method(
        "rows of largest gradient", {"features": "gradient_norm", "pick": "largest", **_WHOLE_POOL}
    ),
    "middle-perplexity": Method("rows of middle perplexity", {"features": "loss", "pick": "middle", **_WHOLE_POOL}),
    "hidden-states": Method("medoids of hidden states", {"features": "mean_hidden", **_WHOLE_POOL}),
    "colm-spsa": Method("the method with the paper's estimate", PRESETS["colm-spsa"]),
    "colm": Method("the method with exact gradients", _COLM),
    "matched": Method("rows and weights whose mean gradient is nearest to the pool's", PRESETS["matched"]),
    "colm-no-adam": Method("without Adam's normalization", {**_COLM, "adam": False}),
    "colm-no-sparsity": Method("compared at all coordinates", {**_COLM, "coordinates": 2**62}),
    "colm-no-small": Method("without the small-source rule", {**_COLM, "small_sources": "none"}),
    "colm-weights": Method("a row counts for its cluster", {**_COLM, "weights": "represented"}),
    "colm-cosine": Method("cosine distance", {**_COLM, "metric": "cosine"}),
    "colm-one-source": Method("all sources as one", {**_COLM, **_WHOLE_POOL}),
}
"""Keys are the names on the command line."""

Rows = Annotated[int, Range(1, 2**20, open="")]
Temperature = Annotated[float, Range(0, open="both")] | None


def method_settings(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run with the method in place of the configured selection.

    The kept fraction, the small sources, coordinates, probes and the sizes of the pass stay as configured.

    Args:
        name: a key of `METHODS`, optionally with changes of the selection: ``colm+keep=0.25,adam=false``. Three others
            are ``pools=4``, a pool of four times the configured size; ``rows=8``, a pool whose coreset has 8 rows; and
            ``temperature=2``, see `data.temperature`.
        values: a resolved configuration, as in `config.yaml`.

    Raises:
        ConfigError: an unknown method (gives the closest one), a change that is not ``key=value``, a value out of
            range, or a name that cannot be that of the folder of its runs.
    """
    base, _, changes = name.partition("+")
    check_keys({base: changes}, METHODS, kind="method")
    if "/" in name:
        raise ConfigError(
            f"The method {name!r} contains '/', which the name of its folder cannot. Methods keep what the settings "
            "say: give a path there, as selection.order_by, or name a file in the current folder."
        )
    method = METHODS[base]
    changed = _parse_changes(name, changes)
    given = set(changed)
    place = f"The method {name!r}: "
    pools = read_value(f"{place}pools", Count, changed.pop("pools", method.pools))
    rows = read_value(f"{place}rows", Rows, changed.pop("rows")) if "rows" in changed else None
    temperature = read_value(f"{place}temperature", Temperature, changed.pop("temperature", method.temperature))
    settings = copy.deepcopy(dict(values))
    training = settings["training"]
    training["gradient_accumulation_steps"] = pools * training.get("gradient_accumulation_steps", 1)
    selection = dict(settings["selection"]) | _PLAIN | dict(method.selection) | changed
    if selection["features"] in ("none", "spsa"):  # no forward pass to reuse for training
        selection |= {"reuse_forward": False, "reuse_offload": False} | changed
    for key in ("keep", "keep_count", "keep_schedule", "pools") if rows is not None or method.grows else ():
        if key in given and (method.grows or key in ("pools", "keep_schedule")):
            other = "rows" if rows is not None else repr(base)
            raise ConfigError(f"{place}{key} and {other} both set the batch; leave one out.")
    if method.grows:
        first = max(1 / 8, 1 / training.get("per_device_train_batch_size", 8))  # a row in each micro-batch
        schedule = [[0, first], [training["max_steps"], 1.0]]
        selection |= {"keep": None, "keep_count": None, "keep_schedule": schedule}
    elif "keep" in method.selection or "keep" in changed:
        selection |= {"keep_count": None, "keep_schedule": []}
    elif "keep_count" in changed:
        selection |= {"keep": None, "keep_schedule": []}
    config = SelectionConfig.from_dict(selection)
    if rows is not None:
        config = _size_pool(training, config, rows, place)
    settings["selection"] = config.to_dict()
    if temperature is not None:
        if settings.get("model") == "tiny":
            raise ConfigError(
                f"{place}model: tiny makes its vocabulary from the training rows, which a temperature changes, so its "
                "losses could not be compared; leave the method out (--batches adds it), or name another model."
            )
        settings["data"] = {**settings["data"], "weights": {}, "temperature": temperature}
    return settings


def batch_methods(sizes: Sequence[int]) -> list[str]:
    """Return the methods that train random rows in batches of other sizes or of another mixture; none without sizes."""
    for rows in sizes:
        if rows < 1:
            raise ConfigError(f"--batches {rows}: a batch must have at least 1 row.")
    return [*(f"random+rows={rows}" for rows in dict.fromkeys(sizes)), "growing", "temperature"] if sizes else []


def _size_pool(training: dict[str, Any], config: SelectionConfig, rows: int, place: str) -> SelectionConfig:
    """Set micro-batches, no larger than before, whose pool has a coreset of that many rows on one process.

    The share of the pool that is kept is the configured one, up to the rows that fill the last micro-batch.

    Raises:
        ConfigError: the pool needs more micro-batches than it keeps rows.
    """
    micro_batch = training.get("per_device_train_batch_size", 8)
    pool = micro_batch * training.get("gradient_accumulation_steps", 1)
    wanted = max(rows, round(rows * pool / config.budget.rows(pool, 0)))
    count = -(-wanted // micro_batch)
    if count > rows:
        raise ConfigError(
            f"{place}rows={rows} would be kept of {wanted}, in {count} micro-batches of {micro_batch}, each of which "
            "needs a row; keep more, or set a larger training.per_device_train_batch_size."
        )
    size = -(-wanted // count)
    training |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": count}
    return replace(config, keep=rows / (size * count), keep_count=None, keep_schedule=())


def _parse_changes(name: str, text: str) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise ConfigError(f"{part!r} in the method {name!r} is not a change; use METHOD+key=value,key=value.")
        try:
            changes[key] = read_yaml(value)
        except ConfigError as error:
            raise ConfigError(f"{part!r} in the method {name!r}: the value is not valid YAML ({error}).") from error
    return changes
