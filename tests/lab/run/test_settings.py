from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from colm.errors import ConfigError
from colm.lab.run.settings import load_run_settings, load_settings, resolve_settings

BASE: dict[str, Any] = {"model": "tiny", "output_dir": "out", "data": {"train": "demo"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": "x"}, "Unknown setting 'modle'. Did you mean 'model'"),
        ({"data": {"trian": "x"}}, "Unknown setting 'trian' in data. Did you mean 'train'"),
        ({"selection": {"kep": 1}}, "Unknown selection setting 'kep'. Did you mean 'keep'"),
        ({"training": {"learning_rat": 1}}, "Unknown setting 'learning_rat' in training.*Did you mean 'learning_rate'"),
        ({"training": {"seed": 1}}, "training.seed is set; move seed to the top"),
        ({"lora": {"rank": 4}}, "Unknown setting 'rank' in lora"),
        ({"lora": 16}, "lora is 16; it must be a mapping"),
        ({"model": None}, "model is None; it must be set"),
        ({"output_dir": None}, "output_dir is None"),
        ({"seed": -1}, "seed=-1"),
        ({"data": {"max_length": 1}}, "data.max_length=1 must be a whole number of at least 2"),
        ({"data": {"columns": ["a"]}}, "data.columns is"),
        ({"mixture": {"path": "x"}}, "mixture is .*; it must be a list of entries such as"),
        ({"mixture": [{"path": "x"}]}, "Both data.train and mixture are set"),
        ({"training": [1]}, "training is .*; it must be a mapping"),
        ({"selection": {"keep": 0.5, "keep_count": 3}}, "both set"),
    ],
)
def test_bad_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_settings({**BASE, **change})


def test_overrides_reach_into_sections(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(BASE))
    settings = load_settings(
        str(path), ["selection.keep=0.25", "training.max_steps=3", "seed=7", "lora={r: 4}", "data.format=text"]
    )
    assert settings.selection.keep == 0.25
    assert settings.selection.seed == 7
    assert settings.training["max_steps"] == 3
    assert settings.lora == {"target_modules": "all-linear", "r": 4}
    assert settings.data.format == "text"
    assert resolve_settings(settings.values).values == settings.values  # config.yaml runs again as it stands
    for bad, message in (
        ("selection.keep", "Invalid override"),
        ("seed.x=1", "seed is 7, not a mapping|cannot be set"),
        ("seed={", "not valid YAML"),
    ):
        path.write_text(yaml.safe_dump({**BASE, "seed": 7}))
        with pytest.raises(ConfigError, match=message):
            load_settings(str(path), [bad])


def test_a_bare_no_is_the_trainers_no(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(BASE) + "training:\n  save_strategy: no\n  bf16: no\n")
    training = load_settings(str(path), ["training.eval_strategy=no"]).training
    assert (training["save_strategy"], training["eval_strategy"], training["bf16"]) == ("no", "no", False)


def test_a_run_of_an_older_version_keeps_its_rendering(tmp_path: Path) -> None:
    path, folder = tmp_path / "run.yaml", tmp_path / "run"
    values = {**BASE, "output_dir": str(folder)}
    path.write_text(yaml.safe_dump(values))
    assert load_settings(str(path), [], resume=True).data.chat_template == "auto"  # nothing to resume
    folder.mkdir()
    made = resolve_settings(values).values
    del made["data"]["chat_template"]
    (folder / "config.yaml").write_text(yaml.safe_dump(made))
    assert load_run_settings(folder).data.chat_template is False
    assert load_settings(str(path), []).data.chat_template == "auto"
    assert load_settings(str(path), [], resume=True).data.chat_template is False
    assert (
        load_settings(str(path), ["data.chat_template=true"], resume=True).data.chat_template is True
    )  # refused later
    (folder / "config.yaml").write_text(yaml.safe_dump({**made, "data": {**made["data"], "chat_template": True}}))
    assert load_run_settings(folder).data.chat_template is True
    assert load_settings(str(path), [], resume=True).data.chat_template == "auto"
