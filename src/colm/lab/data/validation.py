"""Held-out rows as tokens, used to compute a run's evaluation losses."""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import suppress
from typing import Any

from datasets import Dataset, concatenate_datasets

from colm.lab.data.formats import Rendering, rendering_of, tokenizer_of_format
from colm.lab.data.held_rows import Parts, TextRows, part_sources
from colm.lab.data.settings import DataSettings
from colm.lab.data.tokenize import UnlabelledError, tokenize_rows
from colm.step.pool import is_learnable
from colm.step.sources import shorten_names

logger = logging.getLogger(__name__)


def tokenize_held_out(parts: Parts, tokenizer: Any, data: DataSettings) -> Dataset | None:
    """Return the tokens of held-out rows that have a labeled token, see `tokenize_rows`; None if no row has one.

    Training does not need them: sources without a row left are only logged.

    Args:
        parts: rows of text with their sources.
        tokenizer: a fast Hugging Face tokenizer.
        data: the ``data`` section of a run's configuration.

    Raises:
        DataError: no format fits a part.
    """
    column, rendering = data.source_column, rendering_of(data, tokenizer)
    tables = [part for part in parts if not isinstance(part, TextRows)]
    texts = [_tokenize_texts(part, tokenizer, column, rendering) for part in parts if isinstance(part, TextRows)]
    found = [Dataset.from_list(rows) for rows in texts if rows]
    with suppress(UnlabelledError):
        options: dict[str, Any] = {"format_name": data.format, "rendering": rendering, "source_column": column}
        found += [tokenize_rows(tables, tokenizer, **options)] if tables else []
    asked, measured = (Counter(name for part in side for name in part_sources(part, column)) for side in (parts, found))
    lost = shorten_names([f"{name} ({asked[name]})" for name in sorted(asked.keys() - measured.keys())])
    if lost:
        logger.warning(
            "No held-out row of %s has a labeled token within max_length=%d, so %s. colm eval still asks them; "
            "raise data.max_length to measure them.",
            lost,
            data.max_length,
            "these sources have no evaluation loss" if found else "the run trains without an evaluation",
        )
    return concatenate_datasets(found) if found else None


def _tokenize_texts(part: TextRows, tokenizer: Any, column: str, rendering: Rendering) -> list[dict[str, Any]]:
    tokenize = tokenizer_of_format(part.format, tokenizer, rendering)
    rows: list[dict[str, Any]] = [{**tokenize(row), column: str(row[column])} for row in part]
    return [row for row in rows if is_learnable(row["labels"])]
