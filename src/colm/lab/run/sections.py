"""The sections of a configuration, with the type, the range and the default of each setting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from colm.lab.data.columns import COLUMNS
from colm.typed import Count, CountOrZero, Range, Seed, hints_of

LabelTexts = dict[str, list[Any] | dict[Any, Any]]


@dataclass(frozen=True)
class DataSettings:
    """Where the rows come from, and which of them to train on."""

    train: str | None = None  # file, hub name, or 'demo'
    config: str | None = None  # of a hub data set
    split: str = "train"
    validation: str | None = None  # file or hub name
    validation_split: str = "validation"
    # Rows per source to hold out if there is no validation data, or source -> rows.
    validation_rows: CountOrZero | dict[Any, CountOrZero] = 0
    source_column: str = "source"
    format: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)  # colm's column name -> the data's
    max_length: Annotated[int, Range(2)] = 512  # tokens
    demo_rows: Annotated[int, Range(100, 10**7, open="")] = 1500
    seed: Seed | None = None  # of the held-out rows and of the demo's tasks; default the run's
    revision: str | None = None  # of a hub data set
    template: dict[str, str] = field(default_factory=dict)  # new column -> text with columns in braces
    labels: LabelTexts = field(default_factory=dict)  # column -> the texts that its values stand for
    # Source -> weight: each source's share of the rows.
    weights: dict[Any, Annotated[float, Range(0)]] = field(default_factory=dict)
    cap: Count | dict[Any, Count] | None = None  # maximum rows of a source: one number, or source -> number
    streaming: bool = False  # read rows on demand
    source_sizes: dict[Any, Count] = field(default_factory=dict)  # source -> rows, of a stream; default estimated
    window: Count = 1000  # first rows of a stream, from which sizes are estimated


DATA_HINTS: dict[str, Any] = {**hints_of(DataSettings), "format": Literal[("auto", *COLUMNS)]}


@dataclass(frozen=True)
class MixtureEntry:
    """One entry of `mixture`: a file or hub data set whose rows are one source; the rest is as in `data`."""

    path: str
    source: Any = None  # see `sources.source_name`
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    columns: dict[str, str] | None = None
    template: dict[str, str] | None = None
    labels: LabelTexts | None = None


@dataclass(frozen=True)
class TopSettings:
    """The top level of a configuration."""

    model: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    lora: Any = None  # fields of peft.LoraConfig, or null for full fine-tuning
    data: Any = field(default_factory=dict)
    mixture: Any = field(default_factory=list)
    sources: Any = field(default_factory=dict)  # clusters instead of labels; sources split, merged and renamed
    selection: Any = field(default_factory=dict)
    training: Any = field(default_factory=dict)  # fields of transformers.TrainingArguments
    output_dir: str | None = None
    seed: Seed = 0
