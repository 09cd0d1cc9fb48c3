"""Memory-efficient fine-tuning of causal language models on data mixtures by mini-batch coresets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from colm.config import SelectionConfig
from colm.errors import ColmError, ConfigError, DataError, UnsupportedModelError
from colm.losses import example_mean
from colm.selector import CoresetSelector
from colm.types import Coreset, StepRecord

if TYPE_CHECKING:
    from colm.trainers.hf import CoresetTrainer
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
    "SelectionConfig",
    "StepRecord",
    "UnsupportedModelError",
    "__version__",
    "example_mean",
]


def __getattr__(name: str) -> Any:
    # Importing the Trainer takes seconds, which a plain loop should not pay.
    if name == "CoresetTrainer":
        from colm.trainers.hf import CoresetTrainer

        return CoresetTrainer
    if name == "CoresetSFTTrainer":
        from colm.trainers.trl import CoresetSFTTrainer

        return CoresetSFTTrainer
    raise AttributeError(f"module 'colm' has no attribute {name!r}")
