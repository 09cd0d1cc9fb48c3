"""Settings and fixtures of all tests; what they import from each other is in tests/support."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests need nothing from outside
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from hypothesis import settings

# The machine may be busy: time is not what these tests check. The same examples in every run, so that a failure is the
# change's; HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("colm", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "colm"))

torch.set_num_threads(1)  # the models are tiny, and tests run side by side


def pytest_collection_finish() -> None:
    """Leave what is imported out of garbage collections: every training ends with one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def gradients_in_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store gradients as factors if these are smaller, as with large models, although tiny gradients fit whole."""
    monkeypatch.setattr("colm.features.factors.SMALL_BYTES", 0)
