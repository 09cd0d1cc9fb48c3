"""Whatever stands in a setting, it is taken or refused in a line: every field, values of every type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.odd_settings import FIELDS, ODD, changes

from colm.errors import ColmError, ConfigError
from colm.lab.cli import main
from colm.lab.data.settings import MixtureEntry
from colm.lab.run.check import check_run
from colm.lab.run.sections import TopSettings
from colm.lab.run.settings import load_settings, resolve_settings
from colm.lab.run.yaml12 import read_yaml, write_yaml
from colm.lab.sources.config import ClusterConfig

BASE: dict[str, Any] = {"model": "tiny", "output_dir": "out", "data": {"train": "a.jsonl"}}


def elsewhere() -> Iterator[dict[str, Any]]:
    """Yield odd values at the top, in an entry of a mixture, in clusterings, and in a stream's data."""
    for odd in ODD:
        for field in fields(TopSettings):
            yield {field.name: odd}
        for key in (*(field.name for field in fields(MixtureEntry)), "other", 5):
            yield {"data": {}, "mixture": [{"path": "b.jsonl", key: odd}]}
        yield {"data": {}, "mixture": [odd]}
        for field in fields(ClusterConfig):
            yield {"sources": {"cluster": {field.name: odd}}}
            yield {"sources": {"split": {"a": {field.name: odd}}}}
        for name in FIELDS["data"]:
            yield {"data": {"train": "a.jsonl", "streaming": True, name: odd}}


def try_all(given: Iterator[dict[str, Any]]) -> int:
    tried = 0
    for change in given:
        tried += 1
        settings, said = None, ""
        try:
            settings = resolve_settings({**BASE, **change})
            check_run(settings)
        except ColmError as error:
            said = str(error)
        assert "\n" not in said, change
        assert len(said) < 1500, change
        if settings is not None:  # what is taken can be written, and is taken again as it is
            written = write_yaml({key: settings.values[key] for key in change})
            again = resolve_settings({**settings.values, **read_yaml(written)})
            assert write_yaml({key: again.values[key] for key in change}) == written, change
    return tried


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("section", [*FIELDS, "elsewhere"])
def test_every_setting_is_taken_or_refused(section: str) -> None:
    assert try_all(elsewhere() if section == "elsewhere" else changes(section)) > 500


@pytest.mark.parametrize("odd", ["5", "[1]", "{a: 1}", "null", "no", "''", "{", "a: b: c", "&x [*x]", "1" * 5000])
def test_overrides_of_any_kind(tmp_path: Path, odd: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(BASE))
    keys = ["model", "seed", "data", "data.train", "data.cap", "data.cap.a", "training", "training.max_steps", "lora.r"]
    for key in [*keys, "", ".", "a..b", "data.train.x", "mixture.0", "selection.", "sources.split.a"]:
        with suppress(ConfigError):
            load_settings(str(path), [f"{key}={odd}"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# caf\xe9\nmodel: tiny\n", "is not UTF-8: byte 6 is 0xe9"),
        (b"\x89PNG\r\n\x1a\n\x00", "is not UTF-8"),
        (b"PK\x03\x04\x00", "is not valid YAML"),
        (b"- a\n", "contains a list"),
        (b"5\n", "contains a int"),
        (b"", "model is None"),
        (b"model: tiny\n\tdata: 1", "is not valid YAML"),
        (b"model: a\nmodel: b\n", r"the key 'model' appears twice \(lines 1 and 2\)"),
        (b"model: a\n---\nmodel: b\n", "a single document"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_settings(str(path), [])
    with pytest.raises(ConfigError, match="a folder, not a file"):
        load_settings(str(tmp_path), [])
    with pytest.raises(ConfigError, match="no configuration file"):
        load_settings(str(tmp_path / "none.yaml"), [])


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(BASE), encoding="utf-8-sig")
    assert load_settings(str(path), []).model == "tiny"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": {"report_to": "wandb"}}, "training.report_to was refused"),
        ({"training": {"report_to": "nobody"}}, "nobody is not supported"),
        ({"training": {"optim": "galore_adamw"}}, "training.optim='galore_adamw' was refused .*galore"),
        ({"training": {"optim": "adamw"}}, "training.optim='adamw' is not one of .*Did you mean 'adam"),
        ({"training": {"optim_args": "abc", "optim": "adamw_torch"}}, "training.optim='adamw_torch' was refused"),
        ({"training": {"optim_args": "lr=1"}}, "training.optim_args='lr=1' has no effect"),
        ({"training": {"lr_scheduler_type": "cosine_with_min_lr"}}, "cosine_with_min_lr.* was refused"),
        ({"training": {"lr_scheduler_kwargs": {"a": 1}}}, "unexpected keyword argument 'a'"),
        (
            {"training": {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "x"}}},
            "polynomial.* was refused",
        ),
        ({"training": {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}}}, "accepts none"),
        (
            {"training": {"lr_scheduler_type": "constant", "warmup_steps": 5}},
            "warmup_steps=5 has no effect with lr_sch",
        ),
        ({"lora": {"trainable_token_indices": []}}, "trainable_token_indices=.* names no token; leave it out"),
        ({"lora": {"trainable_token_indices": {"embed_tokens": []}}}, "names no token; leave it out"),
        (
            {"lora": {"init_lora_weights": "pissa_niter_4"}},
            "by a random draw that is not saved with the adapter.* set it to pissa",
        ),
        (
            {"training": {"accelerator_config": {"split_batches": True}}},
            "split_batches=True in accelerator_config makes",
        ),
        ({"training": {"dataloader_persistent_workers": True}}, "training.dataloader_.* refused by torch's DataLoader"),
        ({"training": {"dataloader_prefetch_factor": 2}}, "refused by transformers.TrainingArguments"),
        ({"training": {"save_steps": 0}}, "training.save_steps=0 must be above 0"),
        ({"training": {"logging_steps": 0}}, "training.logging_steps=0 must be above 0"),
        ({"training": {"gradient_accumulation_steps": 0}}, "must be a whole number of at least 1"),
        ({"training": {"max_steps": 0}}, "training.max_steps=0 must be one of -1 or a whole number of at least 1"),
        ({"training": {"num_train_epochs": 0}}, "must be a number above 0"),
        ({"training": {"learning_rate": -1.0}}, "training.learning_rate=-1.0 must be a number of at least 0"),
        ({"training": {"fsdp": "full_shard"}}, "training.fsdp='full_shard' splits the weights over processes, but one"),
        ({"training": {"deepspeed": {"zero": 3}}}, "training.deepspeed needs the package"),
        ({"training": {"resume_from_checkpoint": "x"}}, "colm train --resume"),
        ({"training": {"torch_compile_backend": "abc"}}, "refused by torch.compile"),
        ({"training": {"torch_compile_mode": "abc"}}, "Unrecognized mode=abc"),
        ({"training": {"gradient_checkpointing_kwargs": {"reentrant": True}}}, "Did you mean 'use_reentrant'"),
        ({"training": {"eval_strategy": "steps"}}, "evaluates, but there is no validation data"),
        (
            {"data": {"train": "a", "validation_rows": {"a": 0}}, "training": {"eval_strategy": "steps"}},
            "evaluates, but there is no validation data",
        ),
        ({"training": {"eval_on_start": True}}, "evaluates, but there is no validation data"),
        (
            {"training": {"prediction_loss_only": True}},
            "training.prediction_loss_only is True; it must be one of False",
        ),
        ({"training": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor=0.1 would be ignored"),
        ({"training": {"gradient_accumulation_steps": 32}, "selection": {"keep_count": 3}}, "keeps 3, fewer than"),
        ({"seed": 99999999999}, "seed=99999999999 must be a whole number of at least 0 and at most"),
        ({"data": {"train": "a", "format": "csv"}}, "data.format='csv' is not one of 'auto'"),
        ({"data": {"train": "a", "source_column": "labels"}}, r"Rename it: data.columns=\{source: labels\}"),
        ({"data": {"train": "a", "streaming": True}}, "set training.max_steps"),
        (
            {"data": {"train": "a", "streaming": True}, "training": {"max_steps": 1, "dataloader_drop_last": True}},
            "dataloader_drop_last=True has no effect on a stream",
        ),
        (
            {
                "data": {"train": "a", "streaming": True},
                "training": {"max_steps": 1},
                "selection": {"preset": "control", "order": "balanced", "order_by": "v.npy"},
            },
            "order_by='v.npy' is a file with a vector for each row, but the rows of a stream have no numbers",
        ),
        ({"lora": {"r": -1}}, "lora.r=-1 must be a whole number of at least 1"),
        ({"lora": {"target_modules": 5}}, "lora.target_modules is 5; it must be "),
        ({"lora": {"layers_to_transform": [1]}}, "refused by peft.LoraConfig"),
        ({"lora": {"init_lora_weights": "eva"}}, "needs a pass over the data before training"),
        ({"lora": {"eva_config": {}}}, "has no effect without lora.init_lora_weights=eva"),
        (
            {"selection": {"reuse_forward": True}, "training": {"neftune_noise_alpha": 5}},
            "adds noise to the embeddings",
        ),
    ],
)
def test_what_would_fail_once_the_training_starts(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_run(resolve_settings({**BASE, **change}))


def test_numbers_and_truth_values_may_be_written_as_text() -> None:
    given = {"training": {"learning_rate": "1e-5", "max_steps": 1e0, "bf16": "no"}, "selection": {"adam": "off"}}
    settings = resolve_settings({**BASE, **given})
    check_run(settings)
    assert (settings.training["learning_rate"], settings.training["max_steps"]) == (1e-5, 1)
    assert settings.training["bf16"] is False
    assert settings.selection.adam is False


def test_settings_of_another_machine_can_be_read() -> None:
    machine = {"bf16": True, "use_cpu": False, "tf32": True, "report_to": "wandb", "optim": "adamw_bnb_8bit"}
    assert resolve_settings({**BASE, "training": machine}).training["bf16"] is True


def test_checking_sets_up_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist
    from accelerate.state import AcceleratorState, PartialState

    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)  # as torchrun sets them: meeting the other rank would wait for ever
    monkeypatch.chdir(tmp_path)
    states = dict(PartialState._shared_state), dict(AcceleratorState._shared_state)
    check_run(resolve_settings({**BASE, "training": {"use_cpu": True}}))
    assert not dist.is_initialized()
    assert (dict(PartialState._shared_state), dict(AcceleratorState._shared_state)) == states
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_is_status_two_before_the_data_is_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**BASE, "data": {"train": "missing.jsonl"}, "output_dir": str(tmp_path / "out")}))
    for override in (
        "training.report_to=wandb",
        "training.lr_scheduler_type=cosine_with_min_lr",
        "selection.keep_count=99",
    ):
        assert main(["train", str(path), override]) == 2
        assert "missing.jsonl" not in capsys.readouterr().err
