"""The cache of tokens notices each change of what makes them, and nothing else."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher
from tests.support.templates import CHAT

from colm.errors import DataError
from colm.lab.data import tokenize
from colm.lab.data.formats import Rendering
from colm.lab.data.tokenize import LabelledTokenizer, tokenize_counted, tokenize_rows
from colm.models import train_tiny_tokenizer

ROWS = Dataset.from_list([{"source": "sums", "prompt": f"{i} + 1 = ", "completion": str(i + 1)} for i in range(9)])


def make_tokenizer(*texts: str, chat_template: str | None = None) -> Any:
    made = train_tiny_tokenizer([*texts, "0 + 1 = 23456789"] * 5)
    made.chat_template = chat_template
    return made


TOKENIZER = make_tokenizer()


def hash_of(
    tokenizer: Any, rendering: Rendering, format_name: str = "prompt_completion", column: str = "source"
) -> str:
    return Hasher.hash(LabelledTokenizer(format_name, tokenizer, rendering, column))


def test_another_tokenizer_rendering_format_column_or_code_has_another_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, rendering = make_tokenizer(), Rendering(32)
    extended = make_tokenizer()
    extended.add_tokens(["<more>"])
    found = [hash_of(plain, rendering)]
    found += [hash_of(other, rendering) for other in (make_tokenizer("other text"), extended)]
    found += [hash_of(make_tokenizer(chat_template=template), rendering) for template in (CHAT, CHAT + " ")]
    changes: list[dict[str, Any]] = [{"max_length": 33}, {"chat": True}, {"loss_on_prompt": True}, {"too_long": "drop"}]
    found += [hash_of(plain, replace(rendering, **change)) for change in changes]
    found += [hash_of(plain, rendering, "text"), hash_of(plain, rendering, column="kind")]
    monkeypatch.setattr(tokenize, "digest_code", lambda: "other code")
    found.append(hash_of(plain, rendering))
    assert len(set(found)) == len(found)


def test_the_same_settings_have_the_same_fingerprint_also_after_use() -> None:
    tokenizer, rendering = make_tokenizer(), Rendering(32)
    before = hash_of(tokenizer, rendering)
    options: dict[str, Any] = {"format_name": "auto", "rendering": rendering, "source_column": "source"}
    first = tokenize_rows([ROWS], tokenizer, **options)
    assert hash_of(tokenizer, rendering) == before == hash_of(make_tokenizer(), Rendering(32))
    assert tokenize_rows([ROWS], make_tokenizer(), **options)._fingerprint == first._fingerprint
    assert (
        tokenize_rows([ROWS], tokenizer, **{**options, "rendering": Rendering(31)})._fingerprint != first._fingerprint
    )


def test_a_copy_in_another_process_tokenizes_alike() -> None:
    made = LabelledTokenizer("prompt_completion", make_tokenizer(), Rendering(32), "source")
    columns, numbers = ROWS[:], list(range(len(ROWS)))
    ours, copied = (held(columns, numbers) for held in (made, pickle.loads(pickle.dumps(made))))
    assert {name: list(map(str, held)) for name, held in copied.items()} == {
        name: list(map(str, held)) for name, held in ours.items()
    }


def test_processes_share_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "SHARD", 5)
    rows = Dataset.from_list(
        [{**row, "completion": row["completion"] * (number != 6)} for number, row in enumerate(ROWS)]
    )
    options: dict[str, Any] = {"format_name": "auto", "source_column": "source"}
    alone, shared = (
        tokenize_counted([rows], TOKENIZER, rendering=Rendering(32), num_proc=processes, **options)
        for processes in (1, 2)
    )
    assert shared.tokens[:] == alone.tokens[:]
    assert shared.tokens.features == alone.tokens.features
    assert shared.texts[0][:] == alone.texts[0][:]
    assert len(alone.tokens) == len(ROWS) - 1
    long = ROWS.select(range(7)).add_item({**ROWS[7], "prompt": "1" * 99})
    with pytest.raises(DataError, match=r'"1{9}.*has 101 tokens, more than data.max_length=32\. Shorten it'):
        tokenize_counted([long], TOKENIZER, rendering=Rendering(32, too_long="refuse"), num_proc=2, **options)


@pytest.mark.parametrize("learnable", [("101", "0", "0011"), ("000", "01"), ("111", "11")])
def test_the_texts_are_those_of_the_tokens(learnable: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter(range(100))
    parts = [
        Dataset.from_list([{"source": "a", "text": f"{next(numbers)}{next(numbers)}" * int(kept)} for kept in part])
        for part in learnable
    ]
    options: dict[str, Any] = {"format_name": "text", "rendering": Rendering(9), "source_column": "source"}
    monkeypatch.setattr(tokenize, "SHARD", 2)
    found = tokenize_counted(parts, TOKENIZER, **options)
    texts = [text for part in found.texts for text in part["text"][:]]
    assert texts == [text for part in parts for text in part["text"] if text]
    assert TOKENIZER.batch_decode(found.tokens["input_ids"][:], skip_special_tokens=True) == texts
    assert set(found.tokens.column_names) == {"input_ids", "attention_mask", "labels", "source"}
