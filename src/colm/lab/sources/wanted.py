"""Which vectors to make, of which rows: what `colm features` is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from colm.errors import ConfigError


@dataclass(frozen=True)
class Wanted:
    """Which vectors to make.

    Attributes:
        by: what of a row; ``words`` is its text's TF-IDF after a truncated SVD, ``sentence`` the vector of a sentence
            encoder, ``gradients`` the gradient of a model's last value projection.
        dimensions: numbers of a vector, at least 1; a longer vector is sketched, see `draw_sketch`.
        model: the model of the gradients, or the sentence encoder; None for the run's.

    Raises:
        ConfigError: `dimensions` is out of range, or words are given a model.
    """

    by: Literal["words", "sentence", "gradients"]
    dimensions: int = 64
    model: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.dimensions <= 2**31:
            raise ConfigError(f"--dimensions {self.dimensions} must be from 1 to {2**31}.")
        if self.by == "words" and self.model is not None:
            raise ConfigError(f"--by words needs no model; leave out --model {self.model}, or choose another --by.")


class Part(NamedTuple):
    """A part of the rows: `number`, from 0, of `parts`, which are of nearly equal size and in order."""

    number: int
    parts: int

    @classmethod
    def read(cls, text: str) -> Part:
        """Read a part written as ``i/n``.

        Raises:
            ConfigError: it is not, or does not exist.

        >>> Part.read("0/4")
        Part(number=0, parts=4)
        """
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, flags=re.ASCII)
        if match is None or not int(match[1]) < int(match[2]):
            raise ConfigError(f"--shard {text!r} must be i/n with 0 <= i < n, such as 0/4 for the first of four parts.")
        return cls(int(match[1]), int(match[2]))

    def rows(self, total: int) -> range:
        """Return the numbers of the part's rows among `total`.

        >>> [Part(number, 3).rows(7) for number in range(3)]
        [range(0, 2), range(2, 4), range(4, 7)]
        """
        return range(total * self.number // self.parts, total * (self.number + 1) // self.parts)

    def path(self, whole: Path) -> Path:
        """Return the part's file, next to that of the whole.

        >>> Part(0, 3).path(Path("runs/features.parquet")).name
        'features-0-of-3.parquet'
        """
        return whole.with_name(f"{whole.stem}-{self.number}-of-{self.parts}{whole.suffix}")


WHOLE = Part(0, 1)
