"""--verbose and --quiet, before or after the command's name."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.commands import write_run

from colm.lab.cli import build_parser, main
from colm.lab.cli.console import make_console, make_progress, say
from colm.lab.study import child


@pytest.fixture(autouse=True)
def levels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "0")  # restored afterwards
    before = logging.getLogger("colm").level
    yield
    logging.getLogger("colm").setLevel(before)


@pytest.mark.parametrize(
    ("words", "level"),
    [
        (["env"], logging.INFO),
        *((words, logging.DEBUG) for words in (["-v", "env"], ["env", "--verbose"], ["-q", "env", "-v"])),
        *((words, logging.WARNING) for words in (["--quiet", "env"], ["env", "-q"])),
    ],
)
def test_the_option_may_stand_before_or_after_the_command(words: list[str], level: int) -> None:
    assert build_parser().parse_args(words).verbosity == level


@pytest.mark.parametrize(("words", "level"), [([], logging.WARNING), (["-v"], logging.DEBUG)])
def test_only_the_first_process_of_a_launch_informs(
    words: list[str], level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert main(["env", *words]) == 0
    assert logging.getLogger("colm").level == level


def test_both_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["env", "-v", "-q"])
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.slow
def test_a_quiet_training_prints_its_result_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "colm", "train", write_run(tmp_path), "-q", "training.logging_steps=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # in which nothing is imported yet
    assert done.stderr == ""
    assert done.stdout.split()[:3] == ["Summary", "by", "source"]
    assert "Saved in" in done.stdout
    assert "loss " not in done.stdout.replace("loss before", "").replace("loss after", "")  # a line for each step


def test_a_verbose_training_logs_how_long_its_parts_take(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["-v", "train", write_run(tmp_path)]) == 0
    assert "Reading and tokenizing the data took" in caplog.text
    assert "Training took" in caplog.text


def test_a_verbose_error_says_where_it_was_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = str(tmp_path / "gone.yaml")
    assert main(["train", gone]) == 2
    assert "Traceback" not in caplog.text
    assert main(["train", gone, "-v"]) == 2
    assert "read_config_file" in caplog.text


def test_what_a_command_is_doing_is_not_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    for level, shown in ((logging.INFO, "now\n"), (logging.WARNING, "")):
        logging.getLogger("colm").setLevel(level)
        say("now")
        assert capsys.readouterr().out == shown
    with make_progress(make_console(), "Answering") as show:
        show(1, 2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("level", "flags"),
    [(logging.DEBUG, ["--verbose"]), (logging.INFO, []), (logging.WARNING, ["--quiet"]), (logging.NOTSET, [])],
)
def test_the_runs_of_a_comparison_are_as_verbose_as_it_is(level: int, flags: list[str]) -> None:
    logging.getLogger("colm").setLevel(level)
    assert child.verbosity_words() == flags


def test_json_is_the_only_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", write_run(tmp_path), "--gpu-memory", "1GiB", "--json", "-q"]) == 0
    assert "ways" in json.loads(capsys.readouterr().out)
