"""`colm completion`: the script completes commands, options and files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from colm.lab.cli import COMMANDS, main

ASK = """
source "$1"
COMP_WORDS=(colm "${@:2}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_shtab_colm
printf '%s\\n' "${COMPREPLY[@]}"
"""


def complete(script: Path, *words: str) -> set[str]:
    command = ["bash", "-c", ASK, "ask", str(script), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=script.parent)
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "colm.bash"
    script.write_text(capsys.readouterr().out)
    assert set(COMMANDS) <= complete(script, "")
    assert complete(script, "re") == {"replay", "report"}
    assert {"--resume", "--overwrite", "--profile", "--quiet"} <= complete(script, "train", "--")
    (tmp_path / "mine.yaml").touch()
    assert "mine.yaml" in complete(script, "train", "mi")


def test_zsh_gets_a_script_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef colm")


def test_other_shells_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "tcsh2"])
    assert "choose from" in capsys.readouterr().err
