"""Restrictions on model-written programs."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from colm.errors import ConfigError
from colm.lab.evaluate import sandbox
from colm.lab.evaluate.sandbox import find_program, run_program


@pytest.fixture(scope="module")
def run() -> Callable[..., str | None]:
    try:
        run_program("print(1)")
    except ConfigError as error:
        pytest.skip(str(error))
    return run_program


def attempt(action: str) -> str:
    return f"try:\n    {action}\n    print('done')\nexcept BaseException as error:\n    print(type(error).__name__)"


def test_a_program_prints_its_answer(run: Callable[..., str | None]) -> None:
    assert run("import math\nprint(math.comb(5, 2))") == "10\n"
    assert run("print('é')") == "é\n"
    assert run("import os\nprint(sorted(os.environ), os.listdir('.'))") == "['LC_CTYPE'] []\n"
    assert run("import sys\nprint(any('site-packages' in path for path in sys.path))") == "False\n"


@pytest.mark.parametrize("source", ["", "pass", "print(1); 1 / 0", "raise SystemExit(3)", "print('x' * 100_000)"])
def test_a_program_that_fails_or_prints_nothing_or_too_much(run: Callable[..., str | None], source: str) -> None:
    assert run(source) is None


@pytest.mark.parametrize("source", ["print(", "print('\0')", "print('\ud800')", "print(1)" + " " * 200_000])
def test_non_programs_are_not_started(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr(sandbox, "_run", lambda *_: pytest.fail("was started"))
    assert run_program(source) is None


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "while True: print('x')",
        "import time\ntime.sleep(100)",
        "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(100)",
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(100)",
    ],
)
def test_an_endless_program_is_stopped(run: Callable[..., str | None], source: str) -> None:
    start = time.monotonic()
    assert run(source, seconds=0.5) is None
    assert time.monotonic() - start < 10


def test_memory_is_limited(run: Callable[..., str | None]) -> None:
    held = "x = bytearray(400 * 2**20)\nprint(len(x))"
    assert run(held, memory_bytes=256 * 2**20) is None
    assert run(held, memory_bytes=1024 * 2**20) == f"{400 * 2**20}\n"


def test_no_network(run: Callable[..., str | None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        action = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert run(attempt(action)) == "PermissionError\n"
        with pytest.raises(TimeoutError):
            server.accept()
    assert run(attempt("import socket; socket.socket(socket.AF_UNIX)")) == "PermissionError\n"
    # The namespace holds without the filter too: the one interface is the loopback, which is down.
    assert run("print(open('/proc/self/net/dev').read().count(':'))") in ("0\n", "1\n")


def test_no_file_is_written_or_deleted(run: Callable[..., str | None], tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.write_text("held")
    for folder in (tmp_path, tmp_path.parent):
        os.chmod(folder, 0o755)
    for action in (
        f"open({str(held)!r}, 'w')",
        f"import os; os.remove({str(held)!r})",
        f"import os; os.mkdir({str(tmp_path / 'new')!r})",
        "open('here', 'w').write('text')",
        "open('/dev/shm/colm', 'w')",
        f"open({tempfile.gettempdir() + '/colm'!r}, 'w')",
    ):
        assert run(attempt(action)) in ("OSError\n", "PermissionError\n", "FileNotFoundError\n"), action
    assert held.read_text() == "held"
    assert sorted(tmp_path.iterdir()) == [held]


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ("import os; os.fork()", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "RuntimeError"),
        ("import os; os.kill(OURS, 9)", "ProcessLookupError"),
    ],
)
def test_no_process_is_started_or_reached(run: Callable[..., str | None], action: str, error: str) -> None:
    assert run(attempt(action.replace("OURS", str(os.getpid())))) == f"{error}\n"


def test_nothing_runs_without_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        with pytest.raises(ConfigError, match="needs Linux, and this is darwin"):
            run_program("print(1)")
    refusing = sandbox._LAUNCHER.replace("need(libc.unshare(", "need(-1 + 0 * len(")
    refusing = refusing.replace('ctypes.c_int(sum(CLONE_NEW.values()))), "no', 'CLONE_NEW), "no')
    monkeypatch.setattr(sandbox, "_LAUNCHER", refusing)
    if sys.platform.startswith("linux"):
        with pytest.raises(ConfigError, match=r"cannot be sandboxed .* \(no namespaces: .*--run-programs"):
            run_program("print(1)")
    for seconds in (0, 4000):
        with pytest.raises(ConfigError, match=f"seconds={seconds} must be above 0"):
            run_program("print(1)", seconds=seconds)


def test_programs_in_completions() -> None:
    assert find_program("```python\nprint(1)\n```\nor\n```\nprint(2)\n```") == "print(2)\n"
    assert find_program("x = 2\nprint(x)") == "x = 2\nprint(x)"
    assert find_program("```python\nprint(3)") == "print(3)"  # truncated after the program
    assert find_program("We print( it.") is None
    assert find_program("x = 2") is None
