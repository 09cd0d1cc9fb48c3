"""The references for a coreset step: its floor, plain training, and the official algorithm.

They are written out here for a bare or LoRA Llama, independent of the package's own code paths, to reveal slow ones.
"""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from colm import example_mean
from colm.models import load_model

Batch = dict[str, Tensor]


class Shape(NamedTuple):
    """A Llama on random tokens."""

    layers: int = 8
    hidden: int = 320
    intermediate: int = 864
    heads: int = 5
    vocabulary: int = 4096
    dtype: str = "float32"
    kv_heads: int = 0  # of keys and values; 0 for the same number as queries
    tied: int = 0  # 1 if the head shares the embedding's weight


SMOLLM2 = Shape(layers=30, hidden=576, intermediate=1536, heads=9, vocabulary=49_152, kv_heads=3, tied=1)
"""Represents the pretrained model."""

LORA = {"r": 16, "target_modules": "all-linear"}


def build_model(
    shape: Shape, *, lora: bool, tokens: int, device: str | torch.device = "cpu", pretrained: Any = None
) -> Any:
    """Build the model on its device, where drawing billions of random weights is fast.

    Args:
        shape: the model's shape; SmolLM2's represents the pretrained one.
        lora: whether to add adapters.
        tokens: length of the longest row.
        device: the weights' device.
        pretrained: the model itself, on any device; it is moved.
    """
    torch.manual_seed(0)
    if pretrained is None and shape._replace(dtype=SMOLLM2.dtype) == SMOLLM2:
        pretrained = load_model("demo", dtype=shape.dtype)
    with torch.device(device):
        model: Any = build_llama(shape, tokens) if pretrained is None else pretrained.to(device)
        return get_peft_model(model, LoraConfig(**LORA)) if lora else model


def llama_config(shape: Shape, tokens: int) -> Any:
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        max_position_embeddings=max(tokens, 128),
        tie_word_embeddings=bool(shape.tied),
    )


def build_llama(shape: Shape, tokens: int) -> Any:
    """Draw a Llama directly in its dtype; converting one of 8 billion later would need three times the memory."""
    return AutoModelForCausalLM.from_config(llama_config(shape, tokens), dtype=getattr(torch, shape.dtype))


def draw_pool(
    shape: Shape,
    *,
    rows: int,
    micro_batches: int,
    tokens: int,
    shortest: float,
    seed: int,
    device: str | torch.device = "cpu",
) -> list[Batch]:
    """Draw rows of uniformly distributed lengths, the first fourth of each unlabeled, padded as by a collator."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for number in range(micro_batches):
        count = rows // micro_batches + (number < rows % micro_batches)
        lengths = torch.randint(max(4, int(shortest * tokens)), tokens + 1, (count,), generator=generator)
        width = int(lengths.max())
        ids = torch.randint(0, shape.vocabulary, (count, width), generator=generator)
        mask = (torch.arange(width) < lengths[:, None]).long()
        labels = ids.masked_fill((mask == 0) | (torch.arange(width) < lengths[:, None] // 4), -100)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        batches.append({key: value.to(device) for key, value in batch.items()})
    return batches


def take_rows(batches: list[Batch], rows: list[int]) -> list[Batch]:
    """Extract single rows from a pool, without padding."""
    where = [(batch, row) for batch in batches for row in range(len(batch["labels"]))]
    cut = []
    for position in rows:
        batch, row = where[position]
        used = batch["attention_mask"][row].bool()
        cut.append({key: value[row][used] for key, value in batch.items()})
    return cut


def collate(rows: list[Batch]) -> Batch:
    """Pad rows on the right to the longest one."""
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        key: nn.utils.rnn.pad_sequence([row[key] for row in rows], batch_first=True, padding_value=value)
        for key, value in fill.items()
    }


def group_by_length(rows: list[Batch], groups: int) -> list[Batch]:
    """Collate rows of similar length together, in `groups` micro-batches of sizes as even as possible."""
    ordered = sorted(rows, key=lambda row: -len(row["labels"]))
    bounds = [round(len(ordered) * i / groups) for i in range(groups + 1)]
    return [collate(ordered[a:b]) for a, b in pairwise(bounds) if b > a]


def bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def value_map(model: Any) -> nn.Module:
    """Return the map with the last value projection's trained weight."""
    projection = bare(model).model.layers[-1].self_attn.v_proj
    module: nn.Module = projection.lora_B["default"] if hasattr(projection, "lora_B") else projection
    return module


def run_floor(model: Any, batches: list[Batch]) -> None:
    """Do the minimum for selection by exact gradients.

    The trunk without gradients, the head on labeled positions, and the backward to the value projection's output.
    """
    model.eval()
    inner, target = bare(model), value_map(model)
    for batch in batches:
        outputs: list[Tensor] = []

        def begin(module: nn.Module, args: Any, output: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
            torch.set_grad_enabled(True)
            outputs.append(output.detach().requires_grad_())
            return outputs[0]

        handle = target.register_forward_hook(begin)
        with torch.no_grad():
            hidden = inner.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            mask = batch["labels"][:, 1:] != -100
            # The head's own gradient first, from a leaf: its weights need no gradient.
            states = hidden.last_hidden_state[:, :-1][mask]
            leaf = states.detach().requires_grad_()
            weight = inner.lm_head.weight.detach()
            losses = nn.functional.cross_entropy(
                (leaf @ weight.T).float(), batch["labels"][:, 1:][mask], reduction="none"
            )
            share = (1.0 / mask.sum(1))[:, None].expand_as(mask)[mask]
            (at_states,) = torch.autograd.grad((losses * share).sum(), leaf)
            torch.autograd.grad(states, outputs[0], at_states)
        handle.remove()
    model.train()


def train(model: Any, batches: list[Batch], optimizer: Any = None) -> None:
    """Accumulate the gradients of the example mean, and run the optimizer step if there is an optimizer."""
    model.train()
    rows = sum(len(batch["labels"]) for batch in batches)
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        example_mean(logits, batch["labels"], batch.get("row_weights"), num_examples=rows).backward()
    if optimizer is not None:
        optimizer.step()
    model.zero_grad()


def train_plainly(model: Any, batches: list[Batch], optimizer: Any = None) -> None:
    """Train like the plain Trainer: the model's own loss, a mean over all labeled tokens of the step."""
    model.train()
    labelled = sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)
    for batch in batches:
        model(**batch, use_cache=False, num_items_in_batch=labelled).loss.backward()
    if optimizer is not None:
        optimizer.step()
    model.zero_grad()


class OfficialState:
    """The Adam history of the official algorithm's features."""

    def __init__(self, dim: int) -> None:
        self.m = torch.zeros(dim)
        self.v = torch.zeros(dim)
        self.updates = 0


@torch.no_grad()
def run_official(model: Any, batches: list[Batch], keep: int, state: OfficialState) -> list[int]:
    """Select like the official implementation, step by step: its costs, not its code.

    Two evaluations of the last layer and of the head at all positions (SPSA, one direction); the whole matrix of
    gradients, Adam-normalized; the h largest coordinates; gathers that pickle; facility location on the CPU from a
    dense matrix of l1 distances, one pick at a time.
    """
    model.eval()
    inner, weight = bare(model), value_map(model).weight
    last, eps = inner.model.layers[-1], 1e-3
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight)
    slopes = []
    for batch in batches:
        called: list[Any] = []
        handle = last.register_forward_pre_hook(
            lambda module, args, kwargs, called=called: called.append((args, kwargs)), with_kwargs=True
        )
        inner.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        handle.remove()
        (args, kwargs), losses = called[0], []
        for change in (eps, -2 * eps):
            weight.add_(direction, alpha=change)
            logits = inner.lm_head(inner.model.norm(last(*args, **kwargs)))[:, :-1].float()
            targets = batch["labels"][:, 1:]
            token = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            losses.append(token.view(targets.shape).mean(1))
        weight.add_(direction, alpha=eps)
        slopes.append((losses[0] - losses[1]) / (2 * eps))
    gradients = torch.cat(slopes)[:, None] * direction.flatten().float()  # (N, D), full size
    t = state.updates + 1
    m = 0.9 * state.m + 0.1 * gradients
    v = 0.999 * state.v + 0.001 * gradients**2
    step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    columns = step.mean(0).abs().topk(min(2560, step.shape[1])).indices
    features = pickle.loads(pickle.dumps(step[:, columns].cpu()))
    distances = torch.cdist(features, features, p=1.0)
    similarity = distances.max() - distances
    covered, picks = torch.zeros(len(similarity)), []
    for _ in range(keep):
        gains = (similarity - covered).clamp_min(0).sum(1)
        gains[picks] = -1.0
        picks.append(int(gains.argmax()))
        covered = torch.maximum(covered, similarity[picks[-1]])
    moments = pickle.loads(pickle.dumps((m[picks].cpu(), v[picks].cpu())))
    state.m, state.v, state.updates = moments[0].mean(0), moments[1].mean(0), t
    model.train()
    return picks
