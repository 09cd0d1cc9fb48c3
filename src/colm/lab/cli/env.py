"""`colm env`: versions and devices, for bug reports."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from colm import __version__
from colm.errors import one_line
from colm.lab.cli.arguments import Commands, add_command

PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "numpy", "pyarrow", "bitsandbytes")


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_command(commands, "env", "print versions and devices, for bug reports")
    command.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Print one line per package and device, or JSON; a missing package is null there."""
    found = read_environment()
    if args.json:
        return found
    for name, value in found.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        print(f"- {name}: {shown or 'none'}")
    return None


def read_environment() -> dict[str, Any]:
    """Return the versions of colm, Python and packages, the platform, and torch's devices."""
    return {
        "colm": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        **{name: _version(name) for name in PACKAGES},
        **_devices(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken installation is what a bug report may be about
        return {"cuda": None, "devices": [f"torch cannot be imported ({one_line(error)})"]}
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    of_each = [torch.cuda.get_device_properties(number) for number in range(count)]
    return {
        "cuda": torch.version.cuda,
        "devices": [f"{each.name} ({each.total_memory / 2**30:.0f} GiB)" for each in of_each],
    }
