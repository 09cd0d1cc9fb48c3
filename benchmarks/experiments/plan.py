"""The experiments: the question, mixture, methods and seeds of each."""

from __future__ import annotations

from typing import NamedTuple


class Experiment(NamedTuple):
    """One page of docs/results."""

    mixture: str  # a configuration of this folder
    title: str
    about: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    asks: bool = False  # whether the finished runs answer questions


NO_RULE = ("matched+small_sources=none", "matched+small_sources=none,pools=2,keep=0.25")
"""Matching without the small-source rule, from the pool of the headline and from one of twice its size."""

HEADLINE = ("random", "control", "control+keep=0.75", "random-n", "random-2n", "colm", "matched")
BALANCED = (
    "control+small_sources=none,balance=0.7",
    "matched+small_sources=none,balance=0.7,pools=2,keep=0.25",
)
"""Sources weighted by size to the power -0.7 instead of the small-source rule: at random, and matched."""

MIXTURES = {
    "reasoning": "Nine tasks of reasoning-gym, six of them small; a Llama of 2.2 million parameters that was "
    "pretrained on other tasks, trained in full.",
    "real": "Fourteen real instruction sources, eight of them small; a Llama of 2.2 million parameters that was "
    "pretrained on other rows of the large ones, trained in full.",
    "faster": "The mixture and model of the experiment on nine reasoning tasks, with twice its learning rate.",
    "lora": "The mixture and model of the experiment on nine reasoning tasks, trained with LoRA (rank 16, alpha 32, "
    "all linear maps), as in the paper; the embeddings and the head are frozen.",
    "short": "Ten tasks of reasoning-gym with short answers, five of them small. Three of the large ones, 60 % of the "
    "rows, ask one of 25 or 31 questions each and are learned about halfway; the model of the experiment on nine "
    "reasoning tasks, trained in full.",
    "balanced": "Nine tasks of reasoning-gym with equal numbers of rows, so that none is small; the model of the "
    "experiment on nine reasoning tasks.",
}

EXPERIMENTS = {
    "headline_reasoning": Experiment(
        "reasoning",
        "Is the coreset worth it? Nine reasoning tasks",
        MIXTURES["reasoning"],
        (*HEADLINE, *NO_RULE),
        (0, 1, 2, 3, 4),
        asks=True,
    ),
    "headline_real": Experiment(
        "real",
        "Is the coreset worth it? Fourteen real sources",
        MIXTURES["real"],
        (*HEADLINE, *BALANCED),
        (0, 1, 2, 3, 4),
        asks=True,
    ),
    "faster": Experiment(
        "faster",
        "Twice the learning rate",
        MIXTURES["faster"],
        ("random", "control", "random-n", "colm", "matched", *NO_RULE),
    ),
    "lora": Experiment(
        "lora",
        "LoRA instead of full training",
        MIXTURES["lora"],
        ("random", "control", "random-n", "colm", "matched"),
        (0, 1, 2, 3, 4),
    ),
    "objectives_reasoning": Experiment(
        "reasoning",
        "Other ways to pick and weight rows",
        MIXTURES["reasoning"],
        (
            "random",
            "control",
            "random-n",
            "colm",
            "matched",
            "matched+by_source=true,carry=0",
            "matched+weights=uniform",
            "colm+metric=l2,adam=false,shorten=sketch",
            "colm+features=gradient_norm,pick=largest",
            "colm+features=gradient_norm,pick=sample,by_source=false,weights=relative",
            "highest-loss",
            "middle-perplexity",
            "hidden-states",
        ),
    ),
    "balanced": Experiment(
        "balanced",
        "Sources of equal size",
        MIXTURES["balanced"],
        ("random", "control", "random-n", "colm", "colm-no-adam"),
    ),
    "spsa": Experiment(
        "reasoning",
        "Exact gradients or the paper's estimate",
        MIXTURES["reasoning"],
        ("random", "control", "colm", "colm-spsa", "colm-spsa+spsa_probes=8,spsa_directions=fresh"),
    ),
    "weights": Experiment(
        "real",
        "Uniform weights or cluster sizes",
        MIXTURES["real"],
        ("random", "control", "colm", "colm-weights"),
    ),
    "parts": Experiment(
        "reasoning",
        "Each part of the method removed",
        MIXTURES["reasoning"],
        (
            "random",
            "control",
            "colm",
            "colm-no-adam",
            "colm-no-sparsity",
            "colm-no-small",
            "colm-cosine",
            "colm-one-source",
        ),
    ),
    "keep": Experiment(
        "reasoning",
        "How much of the pool to keep",
        MIXTURES["reasoning"],
        (
            "random",
            "control+keep=0.125",
            "colm+keep=0.125",
            "control+keep=0.25",
            "colm+keep=0.25",
            "control",
            "colm",
            "control+keep=0.75",
            "colm+keep=0.75",
            "random-n",
        ),
    ),
    "pool": Experiment(
        "reasoning",
        "The size of the pool, with 32 rows kept",
        MIXTURES["reasoning"] + " Without the small-source rule: from larger pools the small sources alone would fill "
        "the coreset.",
        (
            "random",
            "random-n",
            "random-2n",
            *NO_RULE,
            "matched+small_sources=none,pools=4,keep=0.125",
            "matched+small_sources=none,pools=8,keep=0.0625",
            "matched+small_sources=none,balance=0.3,pools=2,keep=0.25",
            "control+small_sources=none,balance=0.3",
            "matched+small_sources=none,carry=0,pools=2,keep=0.25",
            "colm+small_sources=none,pools=2,keep=0.25",
        ),
    ),
    "coordinates": Experiment(
        "reasoning",
        "How many coordinates are compared",
        MIXTURES["reasoning"],
        ("control", "colm+coordinates=64", "colm+coordinates=512", "colm", "colm-no-sparsity"),
    ),
}
