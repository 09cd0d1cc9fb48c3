"""A child process stops when its parent is told to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from colm.errors import StoppedEarly
from colm.lab.study import child


def python(code: str) -> Callable[[], child.Child]:
    return lambda: subprocess.Popen([sys.executable, "-c", code])


TELLS = "import os, signal, sys, time; os.kill(os.getppid(), signal.{}); time.sleep(60)"
"""A child that has its parent told to stop, without hearing it itself."""


def test_signals_are_passed_on_to_a_child(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(child, "GRACE", 0.2)
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, outside))
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    began = time.monotonic()
    with pytest.raises(StoppedEarly, match=r"by SIGTERM \(the sleeper has exited too\); .* the same command"):
        child.run_child(python(TELLS.format("SIGTERM")), "the sleeper")
    with pytest.raises(KeyboardInterrupt):
        child.run_child(python(TELLS.format("SIGINT")), "the sleeper")
    assert time.monotonic() - began < 30
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert child.run_child(python("raise SystemExit(7)"), "it") == 7
