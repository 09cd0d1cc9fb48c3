"""Write the inputs of the part "does it help": the rows of a mixture and its questions, as token ids.

The GPU machine has neither the mixture's files nor the packages that generate the demo's mixture. `colm train` and
`colm eval` would produce the same tokens, by the same functions.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks that share parts with this suite

import pyarrow as pa
import pyarrow.parquet as pq
from by_source import rows_by_source
from datasets import Dataset, disable_progress_bars
from helps_rows import PLACE
from transformers import LlamaForCausalLM, set_seed

from colm.lab.data.demo import demo_rows
from colm.lab.data.formats import prompt_of_format
from colm.lab.data.questions import Question, read_question_files, read_questions
from colm.lab.run.prepare import PreparedData, prepare_data
from colm.lab.run.settings import resolve_settings
from colm.models import tiny_config
from colm.step.sources import find_small_sources

MAX_LENGTH, TINY_LENGTH = 256, 128
VALIDATION_ROWS, QUESTIONS = 64, 40
"""Maximum number per source."""
TINY_ROWS, TINY_HELD_OUT, TINY_QUESTIONS, TINY_LAYERS = 400, 12, 2, 2
SEED = 0


def write(folder: Path, *, tiny: bool, data: Path | None) -> None:
    """Write tokens, questions and tokenizer to ``folder/helps``; in the rehearsal also a model of two layers.

    Args:
        folder: the content folder of the archive.
        tiny: the rehearsal: the demo's generated mixture, which needs reasoning-gym, and a tokenizer trained on it.
        data: folder of the mixture, with ``mixture/train.jsonl``, ``mixture/validation.jsonl`` and ``eval/*.jsonl``;
            unused in the rehearsal.
    """
    disable_progress_bars()
    place = folder / PLACE
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    if tiny:
        prepared, asked = _demo(place)
    else:
        assert data is not None, "the real mixture needs data, its folder"
        prepared, asked = _real(data)
    limit = TINY_LENGTH if tiny else MAX_LENGTH
    _write_rows(place / "train.parquet", prepared.train)
    held = {
        name: _sample(rows, TINY_HELD_OUT if tiny else VALIDATION_ROWS)
        for name, rows in rows_by_source(prepared.validation).items()
    }
    _write_rows(place / "validation.parquet", *held.values())
    questions = _write_questions(place / "questions.jsonl", asked, prepared.tokenizer, limit)
    prepared.tokenizer.save_pretrained(place / "tokenizer")
    if tiny:
        _write_tiny_model(place / "model", prepared.tokenizer)
    sizes = Counter(prepared.train["source"][:])
    small = find_small_sources(sizes, "auto")
    about = {
        "model": "model" if tiny else "demo",
        "max_length": limit,
        "rows": dict(sizes.most_common()),
        "small_sources": sorted(small),
        "small_share": round(sum(sizes[name] for name in small) / sum(sizes.values()), 4),
        "validation": {name: len(rows) for name, rows in held.items()},
        "questions": questions,
    }
    (place / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _demo(place: Path) -> tuple[PreparedData, list[Question]]:
    """Return the generated mixture; its questions without their task, because the GPU machine lacks the scorer."""
    files = {"train": demo_rows(TINY_ROWS, SEED), "validation": demo_rows(TINY_ROWS, SEED, held_out=TINY_HELD_OUT)}
    for name, rows in files.items():
        rows.select_columns(["source", "prompt", "completion"]).to_json(place / f"{name}.jsonl")
    train, validation = (str(place / f"{name}.jsonl") for name in files)
    prepared = _prepare({"train": train, "validation": validation, "max_length": TINY_LENGTH}, "tiny")
    asked = read_questions(
        read_question_files([validation], {}, "source"), source_column="source", limit=TINY_QUESTIONS, seed=SEED
    ).asked
    for name in files:
        (place / f"{name}.jsonl").unlink()
    return prepared, asked


def _real(data: Path) -> tuple[PreparedData, list[Question]]:
    """Return the mixture and its test questions; sources without a test set use their validation rows."""
    mixture = data / "mixture"
    files = {"train": str(mixture / "train.jsonl"), "validation": str(mixture / "validation.jsonl")}
    prepared = _prepare({**files, "max_length": MAX_LENGTH}, "demo")
    tests = read_question_files([str(path) for path in sorted((data / "eval").glob("*.jsonl"))], {}, "source")
    tested = {name for part in tests for name in part["source"][:]}
    others = [
        part.filter(lambda row: row["source"] not in tested)
        for part in read_question_files([files["validation"]], {}, "source")
    ]
    asked = read_questions([*tests, *others], source_column="source", limit=QUESTIONS, seed=SEED).asked
    return prepared, asked


def _prepare(data: Mapping[str, Any], model: str) -> PreparedData:
    raw = {**data, "chat_template": False}  # so that rows fit into short limits
    settings = resolve_settings({"model": model, "data": raw, "output_dir": "unused", "seed": SEED})
    set_seed(SEED)
    return prepare_data(settings)


def _sample(rows: Dataset, count: int) -> Dataset:
    drawn = random.Random(SEED).sample(range(len(rows)), min(count, len(rows)))
    return rows.select(sorted(drawn))


def _write_rows(path: Path, *parts: Dataset) -> None:
    columns: dict[str, list[Any]] = {
        name: [cell for part in parts for cell in part[name][:]] for name in ("source", "input_ids", "labels")
    }
    schema = pa.schema(
        [("source", pa.string()), ("input_ids", pa.list_(pa.uint16())), ("labels", pa.list_(pa.int32()))]
    )
    pq.write_table(pa.table(columns, schema=schema), path, compression="zstd", compression_level=15)


def _write_questions(path: Path, asked: Sequence[Question], tokenizer: Any, limit: int) -> dict[str, int]:
    """Write the prompts that fit in a training row, and return their number per source."""
    readers = {name: prompt_of_format(name, tokenizer) for name in {question.format for question in asked}}
    counts: Counter[str] = Counter()
    with path.open("w", encoding="utf-8") as file:
        for number, question in enumerate(asked):
            ids = readers[question.format](question.row)
            if not 0 < len(ids) <= limit:
                continue
            line = {"source": question.source, "number": number, "prompt": ids, "expected": question.expected}
            file.write(json.dumps(line) + "\n")
            counts[question.source] += 1
    return dict(counts)


def _write_tiny_model(folder: Path, tokenizer: Any) -> None:
    config = tiny_config(len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    config.num_hidden_layers = TINY_LAYERS
    config.hidden_size, config.intermediate_size = 64, 128
    set_seed(SEED)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    LlamaForCausalLM(config).save_pretrained(folder)
