"""Prepare the experiments: a mixture, and a model of 2 million parameters pretrained on other text.

    python benchmarks/experiments/prepare.py reasoning                      # tasks of reasoning-gym
    python benchmarks/experiments/prepare.py balanced                       # equal numbers of rows per task
    python benchmarks/experiments/prepare.py short                          # short answers, most of them soon learned
    python benchmarks/experiments/prepare.py real --data train.jsonl --validation held.jsonl --questions test.jsonl

Writes runs/experiments/<name>/: train.jsonl, validation.jsonl, questions*.jsonl and model/. For `reasoning`, the model
is pretrained on tasks outside the mixture; `balanced` shares this model and the validation rows, and `short` the model.
For `real`, it is pretrained on two fifths of the large sources' rows, which the mixture then excludes: no other text of
that kind is available. Finished outputs are skipped.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import reasoning_gym
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_linear_schedule_with_warmup

from colm.lab.answers.gym import COLUMN, write_task
from colm.lab.data.demo import SHARES, demo_rows
from colm.step.sources import count_sources, find_small_sources

ROOT = Path("runs/experiments")
SEED, VOCABULARY, WIDTH = 0, 2048, 128
MIXTURE_ROWS, VALIDATION_ROWS = 24_000, 60
OTHER_TASK_ROWS, EPOCHS, BATCH, LEARNING_RATE = 500, 3, 64, 2e-3
PRETRAINING_SHARE = 0.4
SHORT_TASKS: dict[str, tuple[float, dict[str, int]]] = {
    "gcd": (0.25, {"max_value": 5}),
    "lcm": (0.20, {"max_value": 5}),
    "count_bits": (0.15, {"max_n": 31}),
    "products": (0.12, {"max_digits": 1}),
    "simple_equations": (0.10, {}),
    "spell_backward": (0.07, {}),
    "family_relationships": (0.05, {}),
    "leg_counting": (0.03, {}),
    "chain_sum": (0.02, {}),
    "syllogism": (0.01, {}),
}
"""Sources of `short`, with their shares and sizes. The first three ask one of 25 or 31 questions."""

BALANCED_ROWS, BALANCED_SEED = 2_600, 50_000  # of each source; far from the seeds of training and validation rows

OTHER_TASKS = [
    "aiw",
    "basic_arithmetic",
    "bitwise_arithmetic",
    "caesar_cipher",
    "coin_flip",
    "count_primes",
    "decimal_arithmetic",
    "fraction_simplification",
    "gcd",
    "largest_island_text",
    "lcm",
    "letter_counting",
    "letter_jumble",
    "list_functions",
    "number_filtering",
    "number_sequence",
    "number_sorting",
    "palindrome_generation",
    "power_function",
    "prime_factorization",
    "products",
    "propositional_logic",
    "ransom_note",
    "sentence_reordering",
    "time_intervals",
    "word_sequence_reversal",
    "word_sorting",
    "zebra_puzzles",
]
"""Tasks outside the mixture; those unknown to this version of reasoning-gym are skipped."""

OUT_OF_DOMAIN = (
    "color_cube_rotation",
    "course_schedule",
    "dice",
    "game_of_life_halting",
    "isomorphic_strings",
    "self_reference",
    "simple_geometry",
)
"""Tasks with short answers that are in neither the mixture nor the pretraining."""

QUESTIONS, QUESTIONS_SEED = 40, 2_000_000


def make_reasoning(folder: Path) -> None:
    write_rows(folder / "train.jsonl", demo_rows(MIXTURE_ROWS, SEED))
    write_rows(folder / "validation.jsonl", demo_rows(MIXTURE_ROWS, SEED, held_out=VALIDATION_ROWS))
    write_questions(folder)
    texts = []
    for name in OTHER_TASKS:
        assert name not in SHARES
        try:
            tasks = reasoning_gym.create_dataset(name, size=OTHER_TASK_ROWS, seed=SEED)
        except ValueError:
            continue
        texts += [f"{task['question'].strip()}\n{task['answer']}" for task in tasks]
    pretrain(folder, texts)


def write_questions(folder: Path) -> None:
    """Write questions of the mixture's tasks and of others."""
    write_rows(folder / "questions.jsonl", demo_rows(MIXTURE_ROWS, SEED, held_out=QUESTIONS))
    rows = []
    for name in OUT_OF_DOMAIN:
        for task in reasoning_gym.create_dataset(name, size=QUESTIONS, seed=QUESTIONS_SEED):
            prompt = task["question"].strip() + "\n"
            rows.append(
                {"source": name, "prompt": prompt, "completion": task["answer"], COLUMN: write_task(name, task)}
            )
    write_rows(folder / "questions_other.jsonl", rows)


def make_balanced(folder: Path) -> None:
    write_rows(folder / "train.jsonl", demo_rows(MIXTURE_ROWS, BALANCED_SEED, held_out=BALANCED_ROWS))
    write_questions(folder)


def make_short(folder: Path) -> None:
    for name, seed in (("validation", SEED + 1_000_000), ("train", SEED)):
        rows = []
        for source, (share, sizes) in SHORT_TASKS.items():
            size = VALIDATION_ROWS if name == "validation" else round(MIXTURE_ROWS * share)
            for task in reasoning_gym.create_dataset(source, size=size, seed=seed, **sizes):
                rows.append({"source": source, "prompt": task["question"].strip() + "\n", "completion": task["answer"]})
        write_rows(folder / f"{name}.jsonl", rows)


def make_real(folder: Path, data: Path, validation: Path, questions: list[Path]) -> None:
    with data.open(encoding="utf-8") as file:  # not splitlines, which also splits at line separators within a text
        rows = [json.loads(line) for line in file]
    sizes = count_sources([row["source"] for row in rows], "source")
    small = find_small_sources(sizes, "auto")
    draw = random.Random(SEED)
    read = [row["source"] not in small and draw.random() < PRETRAINING_SHARE for row in rows]
    write_rows(folder / "train.jsonl", [row for row, used in zip(rows, read, strict=True) if not used])
    held_out = validation.read_text(encoding="utf-8")
    (folder / "validation.jsonl").write_text(held_out, encoding="utf-8")
    half = held_out.split("\n")[::2]  # for the comparisons at equal time, which evaluate often
    (folder / "validation_half.jsonl").write_text("\n".join(half).rstrip() + "\n", encoding="utf-8")
    held = "".join(path.read_text(encoding="utf-8") for path in questions)
    (folder / "questions.jsonl").write_text(held, encoding="utf-8")
    write_rows(folder / "questions_other.jsonl", demo_rows(MIXTURE_ROWS, SEED, held_out=QUESTIONS))
    pretrain(folder, [f"{r['instruction']}\n{r['output']}" for r, used in zip(rows, read, strict=True) if used])


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    unfinished.rename(path)


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def pretrain(folder: Path, texts: list[str]) -> None:
    """Train a new model on whole texts, packed into rows of `WIDTH` tokens."""
    tokenizer = train_tokenizer(texts)
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            attn_implementation="eager",  # faster than the fused kernel on a CPU, at these lengths
        )
    )
    order = random.Random(SEED).sample(texts, len(texts))
    ids = [token for text in tokenizer(order)["input_ids"] for token in [*text, tokenizer.eos_token_id]]
    rows = torch.tensor(ids[: len(ids) // WIDTH * WIDTH]).view(-1, WIDTH)
    steps = EPOCHS * (len(rows) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    generator = torch.Generator().manual_seed(SEED)
    model.train()
    step, start = 0, time.perf_counter()
    for _ in range(EPOCHS):
        for index in torch.randperm(len(rows), generator=generator)[: len(rows) // BATCH * BATCH].split(BATCH):
            batch = rows[index]
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 50 == 0 or step == steps:
                print(
                    f"step {step} of {steps}  loss {loss.item():.3f}  {time.perf_counter() - start:.0f} s", flush=True
                )
    unfinished = folder / "model.part"
    model.save_pretrained(unfinished)
    config = unfinished / "config.json"  # which excludes the attention
    values = json.loads(config.read_text(encoding="utf-8")) | {"attn_implementation": "eager"}
    config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder / "model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=("reasoning", "balanced", "short", "real"))
    parser.add_argument("--data", type=Path, help="for `real`: JSON lines of source, instruction, output")
    parser.add_argument("--validation", type=Path, help="for `real`: the same")
    parser.add_argument("--questions", type=Path, nargs="*", default=[], help="for `real`: the same, with answers")
    arguments = parser.parse_args()
    folder = ROOT / arguments.name
    if (folder / ("train.jsonl" if arguments.name in ("balanced", "short") else "model")).exists():
        print(f"{folder} is finished.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.name == "reasoning":
        make_reasoning(folder)
    elif arguments.name == "balanced":
        make_balanced(folder)
    elif arguments.name == "short":
        make_short(folder)
    elif arguments.data and arguments.validation:
        make_real(folder, arguments.data, arguments.validation, arguments.questions)
    else:
        parser.error("real needs --data and --validation")


if __name__ == "__main__":
    main()
