"""The interface to lm-evaluation-harness, with a stub module; the real one needs tasks from a hub."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from colm.errors import ConfigError
from colm.lab.evaluate.harness import run_harness


class HFLM:
    def __init__(self, **given: Any) -> None:
        self.given = given


def install(monkeypatch: pytest.MonkeyPatch, evaluate: Any) -> None:
    package, models, module = (ModuleType(name) for name in ("lm_eval", "models", "huggingface"))
    package.simple_evaluate = evaluate  # type: ignore[attr-defined]
    module.HFLM = HFLM  # type: ignore[attr-defined]
    names = {"lm_eval": package, "lm_eval.models": models, "lm_eval.models.huggingface": module}
    for name, held in names.items():
        monkeypatch.setitem(sys.modules, name, held)


def test_the_model_is_handed_over_and_the_figures_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def evaluate(**given: Any) -> dict[str, Any]:
        calls.append(given)
        held = {"alias": "gsm8k", "sample_len": 4, "exact_match,strict": 0.5, "exact_match_stderr,strict": 0.1}
        return {"results": {"gsm8k": {**held, "bleu,none": 3, "bleu_stderr,none": "N/A"}}}

    install(monkeypatch, evaluate)
    scores = run_harness("model", "tokenizer", ["gsm8k"], batch_size=3, limit=4, seed=7)
    assert scores == {
        "gsm8k": {"exact_match,strict": {"value": 0.5, "stderr": 0.1}, "bleu,none": {"value": 3.0, "stderr": None}}
    }
    (call,) = calls
    assert call["model"].given == {"pretrained": "model", "tokenizer": "tokenizer", "batch_size": 3}
    assert (call["tasks"], call["limit"], call["torch_random_seed"]) == (["gsm8k"], 4, 7)


@pytest.mark.parametrize("error", [KeyError("no such task"), ConnectionError("offline")])
def test_tasks_that_cannot_be_run(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def evaluate(**given: Any) -> None:
        raise error

    install(monkeypatch, evaluate)
    with pytest.raises(ConfigError, match=r"could not run gsm8k \((Key|Connection)Error.*lm_eval ls tasks"):
        run_harness("model", "tokenizer", ["gsm8k"], batch_size=3)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'colm\[harness\]', or leave --tasks out"):
        run_harness("model", "tokenizer", ["gsm8k"], batch_size=3)
