"""Generate and judge answers batch by batch, and summarize them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from colm.errors import DataError
from colm.lab.answers import answers_match, extract_answer
from colm.lab.answers.gym import task_accepts
from colm.lab.answers.match import kind_of
from colm.lab.answers.reasoning import CHANNEL_TOKENS, TAG, ends_in_reasoning, without_reasoning
from colm.lab.data.formats import prompt_of_format
from colm.lab.data.questions import Question
from colm.lab.evaluate.generate import end_tokens, generate_batch, plan_batches, prompt_room
from colm.lab.intervals import Share, estimate_macro, estimate_share

PROMPT_CHARACTERS = 1000
"""Trailing characters of a prompt stored in a line of `answers.jsonl`."""

Line = dict[str, Any]
"""One judged answer: source, index, prompt, completion, extracted, expected, right, cut_off, prompt_cut."""


class Generation(NamedTuple):
    """Generation settings."""

    max_new_tokens: int
    batch_size: int
    temperature: float = 0.0  # 0: greedy
    seed: int = 0


class Prompts(NamedTuple):
    """Token ids of each question, and which prompts lost their beginning to fit the model's context."""

    ids: list[list[int]]
    cut: list[bool]


def make_prompts(
    questions: Sequence[Question], model: Any, tokenizer: Any, max_new_tokens: int, *, chat: bool = False
) -> Prompts:
    """Return the prompts as in training with `chat`, see `Rendering`; a prompt that is too long loses its beginning.

    Raises:
        DataError: a prompt has no tokens.
        ConfigError: messages need a chat template that the tokenizer lacks, or `max_new_tokens` leaves no room.
    """
    room = prompt_room(model, max_new_tokens)
    readers = {
        name: prompt_of_format(name, tokenizer, chat=chat) for name in {question.format for question in questions}
    }
    found, cut = [], []
    for question in questions:
        ids = readers[question.format](question.row)
        if not ids:
            raise DataError(f"Row {question.number} of {question.source!r} has an empty prompt; give it a question.")
        cut.append(room is not None and len(ids) > room)
        found.append(ids[-room:] if room is not None else ids)
    return Prompts(found, cut)


def digest_questions(questions: Sequence[Question], prompts: Prompts) -> str:
    """Return a digest of the prompts and expected answers, which identifies stored answers."""
    held = [[q.source, q.number, q.expected, ids] for q, ids in zip(questions, prompts.ids, strict=True)]
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()


def answer_questions(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    prompts: Prompts,
    how: Generation,
    *,
    run: Callable[[str], str | None] | None = None,
    done: Collection[int] = (),
) -> Iterator[list[Line]]:
    """Yield the judged answers, a batch at a time.

    Args:
        model: see `generate.generate_batch`.
        tokenizer: with a padding token.
        questions: questions with distinct numbers.
        prompts: prompts of the questions.
        how: generation settings.
        run: returns the output of a completion that is a program, or None; None to run nothing.
        done: numbers of questions that are already answered; a batch with no others is skipped.
    """
    ends = end_tokens(model, tokenizer)
    for number, batch in enumerate(plan_batches([len(ids) for ids in prompts.ids], how.batch_size)):
        if all(questions[row].number in done for row in batch):
            continue
        completions = generate_batch(
            model,
            [prompts.ids[row] for row in batch],
            pad=tokenizer.pad_token_id,
            ends=ends,
            max_new_tokens=how.max_new_tokens,
            temperature=how.temperature,
            seed=how.seed + number,
        )
        lines = []
        for row, completion in zip(batch, completions, strict=True):
            question = questions[row]
            text = decode_completion(tokenizer, completion.ids)
            prompt = tokenizer.decode(prompts.ids[row])
            # Some chat templates open the thought, so the completion starts inside it.
            extracted, right = judge(question, f"<think>{text}" if ends_in_reasoning(prompt) else text, run)
            lines.append(
                {
                    "source": question.source,
                    "index": question.number,
                    "prompt": prompt[-PROMPT_CHARACTERS:],
                    "completion": text,
                    "extracted": extracted,
                    "expected": question.expected,
                    "right": right,
                    "cut_off": completion.cut_off,
                    "prompt_cut": prompts.cut[row],
                }
            )
        yield lines


def decode_completion(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of a completion without special tokens, except tags around thoughts."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    tags = {
        number
        for number in special
        if (text := str(tokenizer.added_tokens_decoder[number])) in CHANNEL_TOKENS or TAG.fullmatch(text)
    }
    if not tags.intersection(ids):
        return str(tokenizer.decode(ids, skip_special_tokens=True))
    return str(tokenizer.decode([token for token in ids if token not in special - tags], skip_special_tokens=False))


def judge(
    question: Question, completion: str, run: Callable[[str], str | None] | None = None
) -> tuple[str | None, bool]:
    """Return the final answer of a completion, and whether it matches the expected one.

    A reasoning-gym row is right if its task's scorer accepts the completion. A program's answer is its output. Text
    inside a thought (`colm.lab.answers.reasoning`) counts as neither.
    """
    completion = without_reasoning(completion)
    if run is not None and (printed := run(completion)) is not None:
        completion = printed
    extracted = extract_answer(completion, kind=kind_of(question.expected))
    if question.task is not None:
        return extracted, task_accepts(question.task, completion)
    return extracted, extracted is not None and answers_match(extracted, question.expected)


def summarise_answers(
    lines: Sequence[Line], unanswerable: Mapping[str, int], trained: Collection[str] | None
) -> dict[str, Any]:
    """Return the summary of judged answers that `answers.json` stores.

    Args:
        lines: judged answers.
        unanswerable: source -> rows left out for lack of a final answer.
        trained: sources that the model was trained on; None if unknown.

    Returns:
        ``sources``, each with ``rows``, ``exact`` (value, low, high), ``cut_off``, ``no_answer``, ``prompts_cut``,
        ``unanswerable`` and ``in_domain``; and ``in_domain``, ``out_of_domain`` and ``all``, each with the number of
        sources and rows, ``macro`` (with its interval) and ``micro``, or None without sources.
    """
    sources: dict[str, dict[str, Any]] = {}
    for name in sorted({line["source"] for line in lines} | set(unanswerable)):
        held = [line for line in lines if line["source"] == name]
        exact = estimate_share(sum(line["right"] for line in held), len(held)) if held else None
        sources[name] = {
            "rows": len(held),
            "exact": None if exact is None else exact._asdict(),
            "cut_off": sum(line["cut_off"] for line in held),
            "no_answer": sum(line["extracted"] is None for line in held),
            "prompts_cut": sum(line["prompt_cut"] for line in held),
            "unanswerable": unanswerable.get(name, 0),
            "in_domain": None if trained is None else name in trained,
        }
    groups = {
        "in_domain": [name for name, source in sources.items() if source["in_domain"]],
        "out_of_domain": [name for name, source in sources.items() if source["in_domain"] is False],
        "all": list(sources),
    }
    return {"sources": sources} | {group: _average(sources, names) for group, names in groups.items()}


def _average(sources: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any] | None:
    held = [sources[name] for name in names if sources[name]["rows"]]
    macro = estimate_macro([Share(**source["exact"]) for source in held])
    if macro is None:
        return None
    rows = sum(source["rows"] for source in held)
    right = sum(round(source["exact"]["value"] * source["rows"]) for source in held)
    return {
        "sources": len(held),
        "rows": rows,
        "macro": macro._asdict(),
        "micro": estimate_share(right, rows)._asdict(),
    }
