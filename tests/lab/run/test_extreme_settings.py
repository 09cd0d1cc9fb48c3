"""Whatever settings are taken, `colm train` trains with them or says in a line why not."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import write_run
from tests.support.odd_settings import FIELDS, changes

from colm.errors import ColmError
from colm.lab.cli import main
from colm.lab.run.check import check_run
from colm.lab.run.settings import load_settings, resolve_settings
from colm.lab.run.yaml12 import write_yaml

ONE_STEP = {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}
ELSEWHERE = {"push_to_hub", "hub_model_id", "torch_compile", "torch_compile_backend", "torch_compile_mode"}
"""Settings that ask for a network, or for minutes."""

COUNT = int(os.environ.get("COLM_EXTREMES", "24"))


def accepted(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield section and value of each change that the check of the settings takes, and that changes something."""
    for section in FIELDS:
        for change in changes(section):
            part = change[section]
            if not isinstance(part, dict) or ELSEWHERE & part.keys() or not all(isinstance(key, str) for key in part):
                continue
            part = {key: value for key, value in part.items() if key != "train"}
            merged = {**values, section: {**(values.get(section) or {}), **part}}
            try:
                settings = resolve_settings(merged)
                check_run(settings)
            except ColmError:
                continue
            if settings.values != resolve_settings(values).values:
                yield section, part


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_settings_that_are_taken_train_or_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_run(tmp_path, training=ONE_STEP)
    values = load_settings(config, []).values
    found = list(accepted(values))
    assert len(found) > 200
    seed = int(os.environ.get("COLM_EXTREMES_SEED", "0"))
    wrong = []
    for number, (section, part) in enumerate(random.Random(seed).sample(found, COUNT)):
        given = {**values, section: {**(values[section] or {}), **part}, "output_dir": str(tmp_path / str(number))}
        (tmp_path / "run.yaml").write_text(write_yaml(given))
        try:
            status: Any = main(["train", config])
        except BaseException as error:
            status = f"{error!r} {traceback.format_exc(limit=-4)}"
        said = capsys.readouterr().err.strip().splitlines()
        colm = [line for line in said if line.startswith("colm: ")]
        if status not in (0, 2) or (status == 2 and len(colm) != 1):
            wrong.append((section, part, status, said[-1:]))
    assert wrong == []
