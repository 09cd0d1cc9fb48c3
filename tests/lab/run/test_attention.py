"""The attention of the model that a run trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.commands import write_run

from colm.errors import ConfigError
from colm.lab.run.named import set_attention
from colm.lab.run.settings import load_settings
from colm.models import build_tiny_model, train_tiny_tokenizer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_run(tmp_path_factory.mktemp("attention"))


def attention_of(config: str, *overrides: str, dtype: torch.dtype = torch.float32) -> str:
    model = build_tiny_model(train_tiny_tokenizer(["a b c"])).to(dtype)
    set_attention(model, load_settings(config, overrides))
    name: str = model.config._attn_implementation
    return name


def test_a_run_trains_with_the_attention_of_its_settings(config: str) -> None:
    assert attention_of(config) == "sdpa"
    assert attention_of(config, "attention=eager") == "eager"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flash_attention_2", "needs bfloat16 or float16, but the weights are in float32; set dtype to bfloat16"),
        ("flash", "needs bfloat16 or float16"),
        ("none", "cannot be used here .* Set it to auto"),
    ],
)
def test_attention_that_cannot_be_used_is_refused(config: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attention_of(config, f"attention={name}")


def test_a_missing_package_is_named(config: str) -> None:
    with pytest.raises(ConfigError, match="attention='flash_attention_2' cannot be used here"):
        attention_of(config, "attention=flash_attention_2", dtype=torch.bfloat16)


def test_a_run_may_be_resumed_with_another_attention(tmp_path: Path) -> None:
    from colm.lab.run.changes import refused_changes

    held, given = (
        load_settings(write_run(tmp_path), [f"attention={name}"]).values for name in ("flash_attention_2", "sdpa")
    )
    assert not refused_changes(held, given)
