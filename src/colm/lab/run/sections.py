"""The top level of a configuration, with the type, the range and the default of each setting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from colm.config import SelectionConfig
from colm.hints import Filled, Seed
from colm.lab.data.settings import DataSettings, MixtureEntry
from colm.lab.sources.config import SourceRules
from colm.typed import Settings


@dataclass(frozen=True, kw_only=True)
class TopSettings(Settings):
    """The top level of a configuration."""

    model: Annotated[Filled, "set to a string"]
    """Hub name or folder of a model or an adapter, a .gguf file, ``demo``, or ``tiny``."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights. ``auto``: that of the model's files."""

    attention: Annotated[Filled, "set to a string"] = "auto"
    """How attention is computed in training, a name that transformers knows: ``eager``, ``sdpa``,
    ``flash_attention_2``, or a kernel from the Hub. ``auto``: as the model loads."""

    lora: dict[str, Any] | None = None
    """Fields of `peft.LoraConfig`; null or false: full fine-tuning."""

    data: DataSettings = field(default_factory=DataSettings)
    """Where the rows come from, and which of them to train on."""

    mixture: list[MixtureEntry] = field(default_factory=list)
    """Files and hub data sets to mix, instead of `data.train`."""

    sources: SourceRules = field(default_factory=SourceRules)
    """Clusters instead of labels; sources split, merged and renamed."""

    selection: SelectionConfig = field(default_factory=SelectionConfig)
    """How a coreset is chosen from each pool."""

    training: dict[str, Any] = field(default_factory=dict)
    """Fields of `transformers.TrainingArguments`."""

    output_dir: Annotated[Filled, "set to a string"]
    """Output folder of the run."""

    seed: Seed = 0
    """Seed of the training and, by default, of the data, the clusters and the selection."""


SECTIONS = ("lora", "data", "mixture", "sources", "selection", "training")
"""The settings that are read by themselves, with defaults from others."""
