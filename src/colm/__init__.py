"""Memory-efficient fine-tuning of causal language models on data mixtures by mini-batch coresets."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from colm.config import SelectionConfig
from colm.errors import ColmError, ConfigError, DataError, UnsupportedModelError
from colm.losses import example_mean
from colm.selector import CoresetSelector
from colm.types import Coreset, StepRecord

if TYPE_CHECKING:
    from colm.sampler import MixtureBatchSampler
    from colm.trainers.hf import CoresetTrainer
    from colm.trainers.sampling import pack_by_source, use_mixture_sampler
    from colm.trainers.trl import CoresetSFTTrainer

__version__ = "0.1.0"

__all__ = [
    "ColmError",
    "ConfigError",
    "Coreset",
    "CoresetSFTTrainer",
    "CoresetSelector",
    "CoresetTrainer",
    "DataError",
    "MixtureBatchSampler",
    "SelectionConfig",
    "StepRecord",
    "UnsupportedModelError",
    "__version__",
    "example_mean",
    "pack_by_source",
    "use_mixture_sampler",
]


_LAZY = {  # importing the Trainer, or datasets, takes seconds, which a plain loop should not pay
    "CoresetTrainer": "colm.trainers.hf",
    "CoresetSFTTrainer": "colm.trainers.trl",
    "MixtureBatchSampler": "colm.sampler",
    "pack_by_source": "colm.trainers.sampling",
    "use_mixture_sampler": "colm.trainers.sampling",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'colm' has no attribute {name!r}")
