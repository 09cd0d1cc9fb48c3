"""One line about the machine and the commit, for the head of every table."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch
import transformers


def describe_setting(seeds: str) -> str:
    """Return hardware, versions, commit and seeds."""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    status = ["git", "status", "--porcelain", "--", ".", "../src"]
    dirty = subprocess.run(status, cwd=here, capture_output=True, text=True).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return (
        f"{platform.machine()}, {device}; torch {torch.__version__}, transformers {transformers.__version__}; "
        f"commit {commit.stdout.strip() or 'none'}{' with changes' if dirty else ''}; seeds {seeds}"
    )
