"""Progress bars: one for all data on a terminal, none in a pipe."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import write_run
from tqdm import tqdm

from colm.lab.data.progress import advance, begin, one_bar
from colm.lab.run.named import NamedModel, load_base


def errors_of(command: list[str], *, terminal: bool) -> str:
    """Return what a command writes to its standard error, a terminal or a pipe."""
    environment = {name: value for name, value in os.environ.items() if "DISABLE" not in name}
    whole = [sys.executable, "-m", "colm", *command]
    if not terminal:
        done = subprocess.run(whole, capture_output=True, text=True, check=True, env=environment)
        return done.stderr
    import fcntl  # not on Windows
    import termios

    main, side = os.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=side, env=environment) as child:
        os.close(side)
        shown = b""
        try:
            while more := os.read(main, 10_000):
                shown += more
        except OSError:  # the other side is closed
            pass
    os.close(main)
    assert child.returncode == 0, shown
    return shown.decode()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs pseudo-terminals")
def test_a_terminal_shows_one_bar_and_a_pipe_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))  # nothing is read or tokenized yet
    write_run(tmp_path)
    rows = str(tmp_path / "rows.jsonl")
    mixture = [{"path": rows, "source": name} for name in ("a", "b", "c")]
    config = write_run(tmp_path, mixture=mixture, data={"max_length": 32, "validation_rows": 2})
    shown = errors_of(["sources", config], terminal=True)
    assert "Reading the data" in shown
    assert "/3 " in shown  # of three files
    assert "Tokenizing" in shown
    for word in ("Generating", "examples", "Map:"):
        assert word not in shown
    other = write_run(tmp_path, mixture=mixture, data={"max_length": 31, "validation_rows": 2})
    assert "\r" not in errors_of(["sources", other], terminal=False)


@pytest.mark.parametrize("name", ["demo", "x.gguf"])
def test_converting_a_gguf_file_shows_no_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def load(base: str, *, dtype: str) -> Any:
        return list(tqdm(range(3), desc=base))

    monkeypatch.setattr("colm.lab.run.named.load_model", load)
    assert load_base(NamedModel(name), "auto", None) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    assert load_base(NamedModel("other"), "auto", None) == [0, 1, 2]
    assert "other" in capsys.readouterr().err


def test_the_bar_counts_and_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "disable": False})
            bars.append(self)

    monkeypatch.setattr("colm.lab.data.progress.tqdm", Bar)
    advance()  # without a bar, nothing happens
    with one_bar():
        begin("Reading", 2, "files")
        advance()
        with one_bar():
            begin("Tokenizing", 50, "rows")
            advance(20)
        advance(30)
    (bar,) = bars
    assert (bar.n, bar.total, bar.desc, bar.unit) == (50, 50, "Tokenizing", " rows")
    with one_bar():
        pass
    assert len(bars) == 2
