"""The settings of the data: the section `data`, and the entries of `mixture`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from colm.errors import ConfigError
from colm.hints import Count, CountOrZero, Filled, Range, Seed
from colm.lab.data.files import split_ending
from colm.lab.data.schemas import FormatName
from colm.step.sources import SourceName
from colm.typed import Settings

MODEL_COLUMNS = frozenset(
    (
        *("input_ids", "attention_mask", "labels", "label", "label_ids", "position_ids", "token_type_ids", "length"),
        *("inputs_embeds", "past_key_values", "use_cache", "cache_position", "logits_to_keep", "num_items_in_batch"),
        *("output_attentions", "output_hidden_states", "return_dict", "row_weights"),
    )
)
"""Columns with the names of model or loss arguments, which would receive them."""

LabelTexts = dict[str, list[Any] | dict[Any, Any]]


@dataclass(frozen=True)
class DataSettings(Settings):
    """Where the rows come from, and which of them to train on.

    Raises:
        ConfigError: a value is out of range, two keys name the same source, or settings contradict each other.
    """

    train: str | None = None
    """A file, a folder, the name of a hub data set, or ``demo``. For several, see `mixture`."""

    config: str | None = None
    """Configuration of a hub data set."""

    split: str = "train"
    """Split of the training data."""

    validation: str | None = None
    """File, folder, or name of a hub data set with rows to evaluate on."""

    validation_split: str = "validation"
    """Split of the validation data."""

    validation_rows: CountOrZero | dict[SourceName, CountOrZero] = 0
    """Rows of each source to hold out if there is no validation data: a number, or source -> rows."""

    source_column: str = "source"
    """Column with each row's source."""

    format: Literal["auto"] | FormatName = "auto"
    """Format of the rows. ``auto``: the one whose columns are present."""

    columns: dict[str, str] = field(default_factory=dict)
    """Colm's column name -> the data's."""

    chat_template: Literal["auto"] | bool = "auto"
    """Render prompts with completions as conversations, with the tokenizer's chat template. ``auto``: if it has one."""

    loss_on_prompt: bool = False
    """Learn the prompts as well as the completions."""

    max_length: Annotated[int, Range(2)] = 512
    """Tokens of a row."""

    too_long: Literal["cut", "drop", "refuse"] = "cut"
    """What happens to a row of more tokens: it is cut, dropped, or an error."""

    num_proc: Count = 1
    """Processes that tokenize the training rows, with the same result."""

    demo_rows: Annotated[int, Range(100, 10**7, open="")] = 1500
    """Rows of the demo."""

    seed: Seed | None = None
    """Seed of the held-out rows, of caps and weights, and of the demo's tasks. Default: the run's."""

    revision: str | None = None
    """Revision of a hub data set: a branch, tag, or commit."""

    template: dict[str, str] = field(default_factory=dict)
    """New column -> its text, with columns in braces."""

    labels: LabelTexts = field(default_factory=dict)
    """Column -> the texts that its values stand for in a template."""

    weights: dict[SourceName, Annotated[float, Range(0)]] = field(default_factory=dict)
    """Source -> weight: each source's share of the rows."""

    temperature: Annotated[float, Range(0, open="both")] | None = None
    """Each source's share of the rows is in proportion to its rows^(1 / temperature): the alternative to weights."""

    cap: Count | dict[SourceName, Count] | None = None
    """Maximum rows of a source: one number for all, or source -> number."""

    streaming: bool = False
    """Read rows on demand."""

    source_sizes: dict[SourceName, Count] = field(default_factory=dict)
    """Source -> rows, of a stream. Default: estimated from its first rows."""

    window: Count = 1000
    """First rows of a stream, from which sizes are estimated. A balanced order deals this many rows at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights and self.temperature is not None:
            raise ConfigError(
                f"data.weights and data.temperature={self.temperature} both set the sources' shares; leave one out."
            )
        if self.streaming and self.temperature is not None and not self.source_sizes:
            raise ConfigError(
                "data.temperature needs the rows of each source, which a stream does not count; set data.source_sizes."
            )
        if self.streaming and self.cap is not None:
            raise ConfigError("data.cap needs counted rows, and a stream's rows are not counted; use data.weights.")
        if self.streaming and self.train == "demo":
            raise ConfigError("data.streaming reads files and hub data sets, not the demo; set it to false.")
        if self.source_sizes and not self.streaming:
            raise ConfigError("data.source_sizes applies only to streams; leave it out, because colm counts the rows.")
        if self.source_column in MODEL_COLUMNS:
            raise ConfigError(
                f"data.source_column={self.source_column!r} is the name of a token column or a model argument. "
                f"Rename it: data.columns={{source: {self.source_column}}}, and leave data.source_column out."
            )


@dataclass(frozen=True)
class MixtureEntry(Settings):
    """A file or hub data set of a mixture. What an entry leaves out is as in `data`."""

    path: Filled
    """File, folder, or name of a hub data set."""

    source: SourceName | None = None
    """Source of the rows. Default: their own labels or, without any, the file's name."""

    split: str | None = None
    """Split of the data. Default: ``train``."""

    config: str | None = None
    """Configuration of a hub data set."""

    revision: str | None = None
    """Revision of a hub data set: a branch, tag, or commit."""

    columns: dict[str, str] | None = None
    """Colm's column name -> the data's."""

    template: dict[str, str] | None = None
    """New column -> its text, with columns in braces."""

    labels: LabelTexts | None = None
    """Column -> the texts that its values stand for in a template."""

    @property
    def name(self) -> str:
        """The source of rows without a label of their own.

        >>> MixtureEntry("a.jsonl", source=0).name, MixtureEntry("a.jsonl").name
        ('0', 'a')
        """
        return split_ending(self.path)[0] if self.source is None else self.source

    def applied_to(self, data: DataSettings) -> MixtureEntry:
        """Return the entry with what it leaves out filled in from the section `data`."""
        return replace(
            self,
            revision=self.revision or data.revision,
            columns=self.columns or data.columns,
            template=self.template or data.template,
            labels=self.labels or data.labels,
        )
