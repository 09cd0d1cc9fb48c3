"""`colm env`: what a bug report says of the machine."""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version

import pytest
import torch

from colm import __version__
from colm.lab.cli import main


def test_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["colm"] == __version__
    assert found["python"] == platform.python_version()
    for name in ("torch", "transformers", "peft", "trl", "datasets", "accelerate"):
        assert found[name] == version(name)
    assert found["cuda"] == torch.version.cuda
    assert len(found["devices"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_what_is_missing_or_broken_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("colm.lab.cli.env.PACKAGES", ("colm-that-nobody-has",))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"- colm: {__version__}" in lines
    assert "- colm-that-nobody-has: none" in lines
    assert any(line.startswith("- devices: torch cannot be imported (") for line in lines)


def test_gpus_by_name_and_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Properties:
        name, total_memory = "A GPU", 80 * 2**30

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: Properties)
    assert main(["env"]) == 0
    assert "- devices: A GPU (80 GiB), A GPU (80 GiB)" in capsys.readouterr().out
