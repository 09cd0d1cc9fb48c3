"""What the commands do with words that set nothing, and with a terminal that shows, or reads, less than is said."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from tests.support.commands import write_run

from colm import ConfigError
from colm.lab.cli import main
from colm.lab.cli.console import make_console


@pytest.mark.parametrize("command", [["train"], ["sources"], ["plan", "--gpu-memory", "80GB"], ["compare"]])
@pytest.mark.parametrize("word", ["training.max-steps=5", "training.max_steps:5", "resume", "=", "größe=5"])
def test_a_word_that_sets_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], word: str
) -> None:
    assert main([command[0], write_run(tmp_path), word, *command[1:]]) == 2
    error = capsys.readouterr().err
    assert word.partition("=")[0].removeprefix("training.") in error
    assert error.startswith("colm: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_an_encoding_lacks_stops_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    config = write_run(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace("adding", "größe… 漢字 and more words than fit"), encoding="utf-8")
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["sources", config]) == 0
    assert main(["train", config, "seed=漢"]) == 2
    err.flush()
    assert b"colm: seed=" in err.buffer.getvalue()


@pytest.mark.parametrize("lines", [0, 1, 10_000])
def test_an_output_that_nobody_reads_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    def write_much(*_: object, **__: object) -> None:
        make_console().print("\n".join(["a row of a table"] * lines))
        print("Written.")

    monkeypatch.setattr("colm.lab.cli.sources.run", write_much)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        assert main(["sources", write_run(tmp_path)]) == 141
        print("what comes later is dropped", flush=True)


def test_a_closed_output_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)  # as Python has it behind >&-
    assert main(["sources", write_run(tmp_path)]) == 0


def test_a_broken_pipe_of_anything_else_is_no_closed_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("colm.lab.cli.sources.run", fail)
    with pytest.raises(BrokenPipeError):
        main(["sources", write_run(tmp_path)])


def test_a_message_of_several_lines_is_said_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConfigError("No tokenizer (first\n\n  second).")

    monkeypatch.setattr("colm.lab.cli.sources.run", fail)
    assert main(["sources", write_run(tmp_path)]) == 2
    assert capsys.readouterr().err == "colm: No tokenizer (first second).\n"


@pytest.mark.parametrize("place", ["run.yaml", "run.yaml/datasets", "run.yaml/hub/datasets"])
def test_a_cache_that_cannot_be_written_is_not_said_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    config = write_run(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / place))
    assert main(["sources", config]) == 2
    error = capsys.readouterr().err
    assert "through which data is read, is not writable" in error
    assert "Set HF_HOME, or HF_DATASETS_CACHE" in error


def test_a_name_that_the_system_cannot_write_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path, **_: object) -> None:
        path.name.encode("ascii")

    config = write_run(tmp_path, output_dir=str(tmp_path / "größe"))
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    monkeypatch.setattr(Path, "mkdir", fail)
    assert main(["train", config]) == 2
    assert "the name 'größe' cannot be encoded in ascii" in capsys.readouterr().err
