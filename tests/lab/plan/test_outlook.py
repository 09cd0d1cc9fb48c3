"""Predictions from a configuration compared with PyTorch's record of a real step."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from tests.support.allocations import RealRun, peak_bytes
from transformers import CONFIG_MAPPING

from colm import SelectionConfig
from colm.errors import ConfigError
from colm.lab.plan.outlook import Outlook, Request
from colm.lab.plan.propose import propose
from colm.lab.plan.shapes import ModelSpec, build_shapes
from colm.lab.plan.steps import Rehearsal, Rows
from colm.step.pool import Pool

TOLERANCE = 0.15
ROWS, MICRO_BATCHES, TOKENS, KEEP = 8, 2, 40, 0.5
LORA = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.05}
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


def shape(name: str) -> Any:
    from transformers import GPTNeoXConfig, LlamaConfig, Qwen2Config

    if name == "llama":  # grouped heads
        return LlamaConfig(vocab_size=512, hidden_size=96, intermediate_size=256, num_key_value_heads=2, **SMALL)
    if name == "neox":  # queries, keys and values in one projection; layer norms with biases
        return GPTNeoXConfig(vocab_size=256, hidden_size=64, intermediate_size=192, **SMALL)
    return Qwen2Config(  # a head that is the embedding, and large compared with the rest
        vocab_size=1024, hidden_size=64, intermediate_size=96, num_key_value_heads=2, tie_word_embeddings=True, **SMALL
    )


QUICK = [
    ("llama", False, False, False),
    ("llama", True, True, True),
    ("neox", False, True, True),
    ("neox", True, False, False),
    ("qwen2", False, True, False),
    ("qwen2", True, False, True),
]
"""Each shape in full and with LoRA, with and without checkpointing, in float32 and in bfloat16's autocast."""

ALL = list(product(("llama", "neox", "qwen2"), (False, True), (False, True), (False, True)))
CASES = QUICK + [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in QUICK]


@pytest.mark.parametrize(("name", "lora", "checkpointing", "bf16"), CASES)
@pytest.mark.filterwarnings("ignore")  # from the profiler, about frees without a recorded allocation
def test_prediction_is_close_to_measurement(name: str, lora: bool, checkpointing: bool, bf16: bool) -> None:
    spec = ModelSpec(
        name,
        dtype="float32",
        lora=LORA if lora else None,
        autocast=torch.bfloat16 if bf16 else None,
        checkpointing={} if checkpointing else None,
    )
    outlook = Outlook(
        Request(spec, SelectionConfig(noise_every=0, keep=KEEP), Rows(TOKENS), ROWS, MICRO_BATCHES, device="cpu"),
        shape(name),
    )
    real = RealRun(
        shape(name),
        lora=spec.lora,
        checkpointing=checkpointing,
        bf16=bf16,
        rows=ROWS,
        micro_batches=MICRO_BATCHES,
        tokens=TOKENS,
        keep=KEEP,
    )
    measured = {
        "pool": peak_bytes(lambda: real.train(real.pool)),
        "coreset_rows": peak_bytes(lambda: real.train([real.cut(batch, ROWS // 2) for batch in real.pool])),
        "coreset_step": peak_bytes(real.coreset_step),
    }
    selection = peak_bytes(real.select)
    for kind, above in measured.items():
        way = getattr(outlook, kind)(ROWS, MICRO_BATCHES)
        assert way.peak == pytest.approx(real.held + above, rel=TOLERANCE), kind
        predicted = max(way.gradients + way.activations, way.selection)
        assert predicted == pytest.approx(above, rel=TOLERANCE), kind  # the part that is not just counted
        if kind == "coreset_step":
            assert way.selection == pytest.approx(selection, rel=TOLERANCE)


@pytest.mark.filterwarnings("ignore")  # from the profiler
def test_joined_rows_are_planned_with_their_larger_attention() -> None:
    sizes: dict[str, Any] = {"rows": ROWS, "micro_batches": MICRO_BATCHES, "tokens": 96, "keep": KEEP}
    real = RealRun(shape("neox"), lora=None, checkpointing=False, bf16=False, **sizes)
    joined = [Pool(batch).join(range(ROWS)) for batch in real.pool]
    spec, selection = ModelSpec("neox", dtype="float32"), SelectionConfig(noise_every=0, keep=KEEP, padding_free=True)
    outlook = Outlook(Request(spec, selection, Rows(96), ROWS, MICRO_BATCHES, device="cpu"), shape("neox"))
    padded = Outlook(outlook.request._replace(selection=SelectionConfig(noise_every=0, keep=KEEP)), shape("neox"))
    way = outlook.pool(ROWS, MICRO_BATCHES)
    assert way.gradients + way.activations == pytest.approx(peak_bytes(lambda: real.train(joined)), rel=TOLERANCE)
    assert way.peak > padded.pool(ROWS, MICRO_BATCHES).peak
    assert way.flops > padded.pool(ROWS, MICRO_BATCHES).flops


def test_a_model_that_does_not_run_on_joined_rows_is_planned_with_padding() -> None:
    config = CONFIG_MAPPING["lfm2"](
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        layer_types=["conv", "full_attention"],
        num_key_value_heads=2,
        **SMALL,
    )
    ways = [
        Outlook(Request(ModelSpec("x"), selection, Rows(16), 4, 2), config).pool(4, 2)
        for selection in (SelectionConfig(padding_free=True), SelectionConfig(noise_every=0))
    ]
    assert ways[0] == ways[1]


def test_bfloat16_weights_take_half() -> None:
    full, half = (build_shapes(ModelSpec("x", dtype=dtype), shape("llama")) for dtype in ("float32", "bfloat16"))
    assert half.parameters == pytest.approx(full.parameters / 2, rel=0.001)
    assert half.gradients == full.gradients / 2


def test_parts_and_times() -> None:
    outlook = Outlook(Request(ModelSpec("x"), SelectionConfig(noise_every=0), Rows(16), 4, 2), shape("llama"))
    pool, rows, step = (getattr(outlook, kind)(4, 2) for kind in ("pool", "coreset_rows", "coreset_step"))
    weights = sum(weight.numel() for weight in outlook.shapes.trained)
    assert pool.gradients == 4 * weights
    assert pool.optimizer == 8 * weights
    assert (pool.rows, rows.rows, step.rows) == (8, 4, 4)
    assert rows.flops == pytest.approx(pool.flops / 2, rel=0.01)  # a batch's last row is a token shorter
    # A forward of the pool is a third of training it, and the part after the value projection is small.
    assert 1 / 3 <= (step.flops - rows.flops) / pool.flops < 0.7
    assert (pool.selection, rows.selection) == (0, 0)
    assert step.peak < pool.peak


def test_without_a_selection_pass_a_step_is_its_rows() -> None:
    selection = SelectionConfig(features="none", order="balanced", noise_every=0)
    outlook = Outlook(Request(ModelSpec("x"), selection, Rows(16), 4, 2), shape("llama"))
    assert outlook.coreset_step(4, 2) == outlook.coreset_rows(4, 2)


def test_a_noise_measurement_is_a_forward_of_the_kept_rows() -> None:
    steps = []
    for every in (0, 10):
        selection = SelectionConfig(features="none", order="balanced", noise_every=every)
        outlook = Outlook(Request(ModelSpec("x"), selection, Rows(16), 4, 2), shape("llama"))
        steps.append(outlook.coreset_step(4, 2))
    without, measured = steps
    assert measured.noise == measured.flops - without.flops
    assert 1 / 3 <= 10 * measured.noise / without.flops < 0.6  # a forward, and the features of a large head's rows
    assert measured.selection > without.selection == 0


def test_leaving_out_layers_does_not_change_the_memory_of_a_selection() -> None:
    config = shape("llama")
    config.num_hidden_layers = 4
    config.layer_types = None
    rehearsal = Rehearsal(build_shapes(ModelSpec("x"), config), SelectionConfig(noise_every=0), Rows(16))
    whole, short = rehearsal.select(4, 2), rehearsal.select(4, 2, short=True)
    assert short[:2] == whole[:2]
    assert short.flops < whole.flops
    assert len(rehearsal.shapes.model.model.layers) == 4


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_large_fake_masks_change_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def costs() -> tuple[Any, ...]:
        shapes = build_shapes(ModelSpec("x"), shape("llama"))
        rehearsal = Rehearsal(shapes, SelectionConfig(noise_every=0), Rows(TOKENS), device=device)
        return rehearsal.train(4, accumulated=True), rehearsal.select(4, 2), rehearsal.select(4, 2, short=True)

    real = costs()
    monkeypatch.setattr("colm.lab.plan.counting.LARGEST", 4 * TOKENS**2 // 4)  # more than all tokens of the pool
    assert costs() == real


@pytest.mark.slow
def test_the_work_is_bounded() -> None:
    """Rows of any length and micro-batches of any size are planned, in little memory and time."""
    spec, selection = ModelSpec("x"), SelectionConfig(noise_every=0, keep=KEEP)
    short, long = (Outlook(Request(spec, selection, Rows(t), 2, 2), shape("llama")) for t in (10_000, 100_000))
    selected = [outlook.coreset_step(2, 2).selection for outlook in (short, long)]
    assert 7 < selected[1] / selected[0] < 11  # rows of one length are batched together, so there is no mask
    trained = [outlook.pool(2, 2) for outlook in (short, long)]
    assert 50 < trained[1].activations / trained[0].activations < 100  # almost all of it is the mask
    assert 50 < trained[1].flops / trained[0].flops < 100
    many = Outlook(Request(spec, selection, Rows(64), 10**6, 2), shape("llama"))
    few = Outlook(Request(spec, selection, Rows(64), 100, 2), shape("llama"))
    for kind in ("pool", "coreset_rows", "coreset_step"):
        large, small = getattr(many, kind)(10**6, 2), getattr(few, kind)(100, 2)
        assert large.flops == pytest.approx(10**4 * small.flops, rel=0.05), kind
        assert large.activations == pytest.approx(10**4 * small.activations, rel=0.1), kind


@pytest.mark.parametrize("features", ["spsa", "mean_hidden", "last_hidden", "loss", "gradient_norm"])
def test_other_features_run(features: str) -> None:
    rehearsal = Rehearsal(
        build_shapes(ModelSpec("x"), shape("llama")), SelectionConfig(features=features), Rows(16), device="cpu"
    )
    assert rehearsal.select(4, 2).peak > 0


def test_memory_below_the_weights() -> None:
    outlook = Outlook(Request(ModelSpec("x"), SelectionConfig(noise_every=0), Rows(16), 4, 2), shape("llama"))
    outlook.require(2 * outlook.held)
    with pytest.raises(ConfigError, match="cannot hold the model: parameters .* GiB, gradients .* Train with LoRA"):
        outlook.require(outlook.held)


def test_models_that_cannot_be_planned() -> None:
    from transformers import CLIPConfig

    with pytest.raises(ConfigError, match="'x' .CLIPConfig. cannot be planned, since it cannot be built"):
        build_shapes(ModelSpec("x"), CLIPConfig())
    quantised = shape("llama")
    quantised.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ConfigError, match="quantized weights .bitsandbytes.*plan with the model that it was"):
        build_shapes(ModelSpec("x"), quantised)
    with pytest.raises(ConfigError, match="dtype='int4' is not one of auto, float32"):
        build_shapes(ModelSpec("x", dtype="int4"), shape("llama"))
    with pytest.raises(ConfigError, match="The lora settings do not fit the model"):
        build_shapes(ModelSpec("x", lora={"target_modules": ["nothing"]}), shape("llama"))
    with pytest.raises(ConfigError, match="The configuration of the model 'no/such' could not be read"):
        build_shapes(ModelSpec("no/such"))


@pytest.mark.slow
def test_proposals_keep_their_promise() -> None:
    request = Request(ModelSpec("x"), SelectionConfig(noise_every=0, keep=KEEP), Rows(24), 4, 2)
    outlook = Outlook(request, shape("llama"))
    memory = 3 * outlook.held
    for coreset in (False, True):
        found = propose(outlook, memory, coreset=coreset)
        assert found.same_pool is not None
        assert found.largest_pool is not None
        for proposal in found:
            sizes = proposal[:2]
            exact = Outlook(request._replace(micro_batch=sizes[0], micro_batches=sizes[1]), shape("llama"))
            way = exact.coreset_step(*sizes, time=False) if coreset else exact.pool(*sizes)
            assert way.peak == pytest.approx(proposal.peak, rel=0.05)  # other sizes are on lines through those run
            assert way.peak <= memory
    assert propose(outlook, outlook.held, coreset=True) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2", "gemma2"])
@pytest.mark.filterwarnings("ignore")
def test_other_layouts(name: str, dtype: str) -> None:
    from transformers import Gemma2Config, GPT2Config, Phi3Config

    small = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 2, **SMALL}
    config = {
        "llama": lambda: shape("llama"),
        "phi3": lambda: Phi3Config(**small),
        "gpt2": lambda: GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=1),
        "gemma2": lambda: Gemma2Config(head_dim=16, **small),
    }[name]()
    spec, selection = ModelSpec("x", dtype=dtype), SelectionConfig(noise_every=0, keep=KEEP)
    outlook = Outlook(Request(spec, selection, Rows(TOKENS), ROWS, MICRO_BATCHES, device="cpu"), config)
    sizes = {"rows": ROWS, "micro_batches": MICRO_BATCHES, "tokens": TOKENS, "keep": KEEP}
    real = RealRun(config, lora=None, checkpointing=False, bf16=False, dtype=getattr(torch, dtype), **sizes)
    step = outlook.coreset_step(ROWS, MICRO_BATCHES, time=False)
    assert step.selection == pytest.approx(peak_bytes(real.select), rel=TOLERANCE)
    pool = peak_bytes(lambda: real.train(real.pool))
    assert outlook.pool(ROWS, MICRO_BATCHES).peak == pytest.approx(real.held + pool, rel=TOLERANCE)
