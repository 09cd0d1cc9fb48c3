"""Memory-efficient fine-tuning of causal language models on data mixtures by mini-batch coresets."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colm.config import SelectionConfig
    from colm.errors import ColmError, ConfigError, DataError, UnsupportedModelError
    from colm.lean import LeanHead
    from colm.losses import example_mean
    from colm.sampler import MixtureBatchSampler
    from colm.selector import CoresetSelector
    from colm.trainers.hf import CoresetTrainer
    from colm.trainers.sampling import pack_by_source, use_mixture_sampler
    from colm.trainers.trl import CoresetSFTTrainer
    from colm.types import Coreset, StepRecord

__version__ = "0.1.0"

__all__ = [
    "ColmError",
    "ConfigError",
    "Coreset",
    "CoresetSFTTrainer",
    "CoresetSelector",
    "CoresetTrainer",
    "DataError",
    "LeanHead",
    "MixtureBatchSampler",
    "SelectionConfig",
    "StepRecord",
    "UnsupportedModelError",
    "__version__",
    "example_mean",
    "pack_by_source",
    "use_mixture_sampler",
]

_MODULES = {
    "config": ("SelectionConfig",),
    "errors": ("ColmError", "ConfigError", "DataError", "UnsupportedModelError"),
    "lean": ("LeanHead",),
    "losses": ("example_mean",),
    "sampler": ("MixtureBatchSampler",),
    "selector": ("CoresetSelector",),
    "trainers.hf": ("CoresetTrainer",),
    "trainers.sampling": ("pack_by_source", "use_mixture_sampler"),
    "trainers.trl": ("CoresetSFTTrainer",),
    "types": ("Coreset", "StepRecord"),
}
"""Where each name is defined; imported on first use, because torch and the Trainer take seconds to import."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:  # as after `import colm` when the names were imported at once
        return import_module(f"colm.{name}")
    for module, names in _MODULES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"colm.{module}"), name)
            return value
    raise AttributeError(f"module 'colm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
