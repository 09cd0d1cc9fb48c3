"""How close is a coreset step to its theoretical minimum in time, memory and padding?

    python benchmarks/step.py --json step.json          # a Llama of 13 million parameters
    python benchmarks/step.py --smollm2 --rows 8 --keep 4 --micro-batches 2 --trained lora --rounds 3 --large

The floor of selection: a forward of the pool's rows without gradients, the head on labeled positions, and the backward
from there to the value projection's output. The ideal step: the floor plus training the kept rows, all in micro-batches
grouped by length. Every round times the steps in turn on the same rows and divides by the round's ideal. On a CPU the
clock is process time on one thread, which other processes disturb little; on a GPU it is wall time. Memory is counted
(the peak of what autograd saves), not timed. The JSON holds each figure's largest median over full and LoRA training,
and all medians by kind.
"""

from __future__ import annotations

import argparse
import json
import statistics
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from counting import peak_saved_bytes
from padding import padding_shares
from setting import describe_setting
from step_parts import (
    SMOLLM2,
    Batch,
    OfficialState,
    Shape,
    build_model,
    collate,
    draw_pool,
    group_by_length,
    run_official,
    take_rows,
    train,
    value_map,
)
from step_timed import Round, Step, seconds

from colm import SelectionConfig

Figures = dict[str, list[float]]


def measure_time(args: argparse.Namespace, shape: Shape, *, lora: bool, rows: int, rounds: int) -> Figures:
    """Time floor, ideal, step and official algorithm in turn, `rounds` times after a warm-up round."""
    model = build_model(shape, lora=lora, tokens=args.tokens)
    keep = max(1, round(rows * args.keep / args.rows))
    slots = max(1, round(args.micro_batches * rows / args.rows))
    step = Step(model, SelectionConfig(keep_count=keep))
    official = OfficialState(value_map(model).weight.numel())
    figures: Figures = {}
    for seed in range(rounds + 1):
        pool = draw_pool(shape, rows=rows, micro_batches=slots, tokens=args.tokens, shortest=args.shortest, seed=seed)
        one = step.beside_ideal(pool)
        found = {
            "selection_over_floor": one.selection / one.floor,
            "after_features_share": one.after / one.step,
            "step_over_ideal": one.step / one.ideal,
        }
        if rows == args.rows:
            found |= measure_official(model, pool, official, keep, one)
        for name, value in found.items():
            figures.setdefault(name, []).append(value)
    return {name: values[1:] for name, values in figures.items()}


def measure_official(model: Any, pool: list[Batch], state: OfficialState, keep: int, ours: Round) -> dict[str, float]:
    """Time the official algorithm's selection, and training the rows that it keeps."""
    picks: list[int] = []
    paid = seconds(lambda: picks.extend(run_official(model, pool, keep, state)))
    cut = take_rows(pool, sorted(picks))
    ends = list(accumulate(len(group["labels"]) for group in ours.kept))
    theirs = [collate(cut[start:end]) for start, end in pairwise([0, *ends])]
    return {
        "official_selection_over_floor": paid / ours.floor,
        "official_over_ideal": (paid + seconds(train, model, theirs)) / ours.ideal,
    }


def measure_checkpointed(args: argparse.Namespace, shape: Shape, *, lora: bool) -> Figures:
    """Time the step with gradient checkpointing, with and without `reuse_forward`, and its ideal.

    With N rows of which K are kept, and a row's forward as the unit, the ideal is N + 3 K with LoRA and N + 4 K in
    full training; `reuse_forward` saves one K: with N = 2 K that leaves 0.80 and 0.83.
    """
    found: Figures = {}
    for name, reuse in (("checkpointed_step_over_ideal", True), ("checkpointed_without_reuse", False)):
        model = build_model(shape, lora=lora, tokens=args.tokens)
        if lora:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
        model.train()
        step = Step(model, SelectionConfig(keep_count=args.keep, reuse_forward=reuse))
        rounds = [step.beside_ideal(draw(args, shape, seed)) for seed in range(args.rounds + 1)]
        found[name] = [one.step / one.ideal for one in rounds[1:]]
    return found


def draw(args: argparse.Namespace, shape: Shape, seed: int) -> list[Batch]:
    return draw_pool(
        shape, rows=args.rows, micro_batches=args.micro_batches, tokens=args.tokens, shortest=args.shortest, seed=seed
    )


def measure_memory(args: argparse.Namespace, shape: Shape, *, lora: bool) -> Figures:
    """Count what autograd saves in a coreset step, in training the coreset, and in training the pool."""
    model = build_model(shape, lora=lora, tokens=args.tokens)
    step = Step(model, SelectionConfig(keep_count=args.keep))
    pool = draw(args, shape, 0)
    whole = peak_saved_bytes(lambda: train(model, pool), model)
    ours = peak_saved_bytes(lambda: step.run(pool), model)
    kept = group_by_length(take_rows(pool, step.rows), args.micro_batches)
    coreset = peak_saved_bytes(lambda: train(model, kept), model)
    return {"memory_over_coreset": [ours / coreset], "memory_over_pool": [ours / whole]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("rows", 32), ("keep", 16), ("micro-batches", 4), ("tokens", 128), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument(
        "--shortest", type=float, default=0.5, help="length of the shortest row, as a fraction of tokens"
    )
    parser.add_argument("--smollm2", action="store_true", help="use SmolLM2-135M instead of the shape")
    for name, value in Shape()._asdict().items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--trained", choices=["both", "full", "lora"], default="both")
    parser.add_argument(
        "--large", type=int, nargs="*", default=[128], help="pools for which to show the share after the features"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = Shape(**{name: getattr(args, name) for name in Shape._fields})
    if args.smollm2:
        shape = SMOLLM2._replace(dtype=args.dtype)
    print(f"{describe_setting(f'0 to {args.rounds}')}\n")
    print(f"{shape}; pool {args.rows} in {args.micro_batches}, keep {args.keep}, T {args.tokens}\n")
    print("| trained | figure | median | range |\n| --- | --- | ---: | --- |")
    by_kind: dict[str, dict[str, dict[str, float]]] = {}
    results: dict[str, Any] = {"setting": describe_setting(f"0 to {args.rounds}"), "shape": shape._asdict()}
    for trained in ("full", "lora") if args.trained == "both" else (args.trained,):
        lora = trained == "lora"
        found = measure_time(args, shape, lora=lora, rows=args.rows, rounds=args.rounds)
        for rows in args.large:
            share = measure_time(args, shape, lora=lora, rows=rows, rounds=1)["after_features_share"]
            found[f"after_features_share_{rows}"] = share
        found |= measure_checkpointed(args, shape, lora=lora)
        found |= measure_memory(args, shape, lora=lora)
        by_kind[trained] = {name: summarise(trained, name, values) for name, values in found.items()}
    results |= {name: max(kind[name]["median"] for kind in by_kind.values()) for name in next(iter(by_kind.values()))}
    padding = padding_shares()
    for name, share in padding.items():
        print(f"| demo mixture | padding_share, {name.replace('_', ' ')} | {share:.4f} | |")
    results |= {"padding_share": padding["after"], "padding": padding, "by_kind": by_kind}
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def summarise(trained: str, name: str, values: list[float]) -> dict[str, float]:
    """Print a line and return its numbers."""
    middle, low, high = statistics.median(values), min(values), max(values)
    print(f"| {trained} | {name} | {middle:.4f} | {low:.4f} to {high:.4f} |", flush=True)
    return {"median": middle, "min": low, "max": high}


if __name__ == "__main__":
    main()
