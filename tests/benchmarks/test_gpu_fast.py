"""The parts of benchmarks/gpu/fast.py that need no GPU: its reckoning, what it makes of a profile, its page."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "gpu"))
import fast_cases
import fast_page
import gauges
import planned
from fast_lean import make_ways
from fast_profile import Event, summarise
from step_parts import build_llama, build_model, draw_pool, train


def test_the_shapes_have_the_parameters_of_their_names() -> None:
    sizes = {"135M": 134_515_008, "1B": 1_235_814_400, "8B": 8_030_261_248}
    for name, shape in fast_cases.SHAPES.items():
        with torch.device("meta"):
            model = build_llama(shape, 2048)
        assert sum(parameter.numel() for parameter in model.parameters()) == sizes[name]


def test_a_row_of_each_model_comes_first_and_they_fit_two_minutes() -> None:
    found = fast_cases.units(tiny=False)
    assert [case.model for _, case, _ in found[:4]] == ["135M", "8B", "135M", "1B"]
    assert [case.lean for _, case, _ in found[:4]] == [True, False, True, True]
    profiles = sum(fast_cases.PROFILED[case.name] for _, case, profiled in found[:4] if profiled)
    seconds = sum(case.seconds for _, case, profiled in found[:4] if not profiled)
    assert seconds + profiles + fast_cases.READING < 105
    assert len({name for name, _, _ in found}) == len(found)
    for _, case, _ in [*found, *fast_cases.units(tiny=True)]:
        assert case.rows % case.micro_batch == case.keep % case.micro_batches == 0


def test_a_plan_is_read_for_its_own_size_only(tmp_path: Path) -> None:
    (tmp_path / "planned.json").write_text('{"tiny": true, "peaks": {"one": {"pool": 5}}}')
    assert planned.read(tmp_path, tiny=True) == {"one": {"pool": 5}}
    assert planned.read(tmp_path, tiny=False) == {}
    assert planned.read(tmp_path / "elsewhere", tiny=True) == {}


def test_kernels_count_for_the_operator_that_launched_them_and_idle_is_what_none_covers() -> None:
    events = [
        Event("aten::mm", False, 0, 10, 7, 0, 1),
        Event("cudaLaunchKernel", False, 1, 2, 90, 7, 1),
        Event("cudaDeviceSynchronize", False, 10, 100, 91, 0, 1),
        Event("gemm", True, 20, 60, 90, 7, 0),
        Event("add", True, 50, 70, 92, 8, 0),  # beside it on another stream, of an operator that was not seen
    ]
    found = summarise(events, wall=100e-9)
    assert found["operators"] == [("aten::mm", 0.6667), ("add", 0.3333)]
    assert (found["launches"], found["waits"], found["kernels_seen"]) == (1, 1, 2)
    assert found["idle_share"] == pytest.approx(0.5)


def test_on_a_cpu_an_operator_s_time_is_without_that_of_what_it_calls() -> None:
    events = [Event("outer", False, 0, 10, 1, 0, 1), Event("inner", False, 2, 8, 2, 0, 1)]
    found = summarise(events, wall=1.0)
    assert found["operators"] == [("inner", 0.6), ("outer", 0.4)]
    assert found["idle_share"] is None


def test_gauges_are_read_through_nvml_and_none_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = SimpleNamespace(
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetClockInfo=lambda handle, kind: 1980,
        nvmlDeviceGetPowerUsage=lambda handle: 612_345,
        nvmlDeviceGetTemperature=lambda handle, kind: 51,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert gauges.Gauges(torch.device("cuda")).read() == {"mhz": 1980.0, "watt": 612.345, "celsius": 51.0}
    assert gauges.Gauges(torch.device("cpu")).read() is None
    nvml.nvmlInit = lambda: 1 / 0
    told = SimpleNamespace(stdout="1755, 431.20, 47\n")
    monkeypatch.setattr(gauges.subprocess, "run", lambda *args, **kwargs: told)
    assert gauges.Gauges(torch.device("cuda")).read() == {"mhz": 1755.0, "watt": 431.2, "celsius": 47.0}


def test_the_page_shows_faults_that_no_later_slice_has_mended() -> None:
    ways = {"pool": {"planned_mib": 100.0, "measured_mib": 120.0, "ratio": 1.2, "near": False}}
    case = {
        "model": "8B",
        "tokens": 512,
        "rows": 128,
        "checkpointed": True,
        "gpu": "NVIDIA H100",
        "rounds": 2,
        "ratios": {"step_over_ideal": [0.81, 0.8, 0.82]},
        "seconds": {way: [1.0, 1.0, 1.0] for way in ("colm", "selection", "picking", "training")},
        "mib": {"colm": 2048.0},
        "gauges": {"colm": {"mhz": 1980.0, "watt": 650.0, "celsius": 60.0}},
    }
    page = fast_page.write_section(
        [
            {"unit": "a", "fault": "out of memory"},
            {"unit": "a plan", "ways": ways, "on_gpu": True},
            {"unit": "a plan", "fault": "off by more than 15%"},
            {"unit": "a", **case},
            {"unit": "b", "fault": "raised"},
        ]
    )
    assert "out of memory" not in page
    assert "- 🔴 a plan: off" in page
    assert "- 🔴 b: raised" in page
    assert "🔴 1.200" in page
    assert "0.81 (0.80 to 0.82)" in page
    assert "| 1980 | 650 | 60 |" in page
    assert "lean step" not in page
    lean = {way: [1.0, 1.0, 1.0] for way in ("plain", "by length", "lean", "chunked")}
    ratios = {"lean: step": [0.5, 0.5, 0.5], "lean: memory": [0.25, 0.25, 0.25]}
    more = {"seconds": {**case["seconds"], **lean}, "ratios": ratios, "missing": {"fused": "no GPU"}}
    peaks = {"mib": {**case["mib"], **dict.fromkeys(lean, 1.0)}}
    page = fast_page.write_section([{"unit": "c", **case, **more, **peaks}])
    assert "| c, checkpointed, reuse_forward | lean step, K rows | 0.50 | 0.25 |" in page
    assert "| lean step in a kernel, K rows (not run: no GPU) | - | - |" in page
    assert "Nothing was measured" in fast_page.write_section([])


def test_a_model_is_built_in_its_dtype_with_grouped_heads() -> None:
    model = build_model(fast_cases.TINY, lora=False, tokens=32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.layers[0].self_attn.v_proj.weight.shape == (32, 64)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_lean_steps_give_the_gradients_of_all_logits() -> None:
    model = build_model(fast_cases.TINY._replace(dtype="float32"), lora=True, tokens=32)
    case = fast_cases.CASES[0].shrunk()
    assert case.lean
    ways, missing = make_ways(model, Sum(model), case)
    assert list(ways)[:3] == ["by length", "lean", "chunked"]
    assert ("fused" in ways) == ("fused" not in missing)
    batches = draw_pool(case.shape, rows=8, micro_batches=2, tokens=32, shortest=0.5, seed=0)
    found = {}
    for name, way in {"all": partial(train, model, optimizer=Sum(model)), **ways}.items():
        Sum.last = []
        way(batches)
        found[name] = Sum.last
    for name in ("lean", "chunked"):
        torch.testing.assert_close(found[name], found["all"], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(found["by length"][-1], found["all"][-1], rtol=1e-3)  # the mean over tokens
    assert make_ways(model, None, case._replace(lean=False)) == ({}, {})


class Sum:
    """An optimizer that only notes the gradients."""

    last: ClassVar[list[torch.Tensor]] = []

    def __init__(self, model: Any) -> None:
        self._model = model

    def step(self) -> None:
        Sum.last = [weight.grad.clone() for weight in self._model.parameters() if weight.grad is not None]
