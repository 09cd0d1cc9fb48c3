"""A folder keeps what colm did not write, and a run takes another's place in it whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.files import contents
from tests.support.folders import fingerprint_text, settings_text, start, train_in

from colm.errors import ConfigError
from colm.lab.run.folder import RunFolder
from colm.lab.run.lock import LOCK_NAME
from colm.lab.run.recognize import is_recognized, is_settings_file
from colm.lab.run.settings import resolve_settings
from colm.lab.run.staging import NEW, OLD
from colm.lab.run.yaml12 import write_yaml
from colm.step.record import ANSWER_NAMES, MANIFEST_NAME, RUN_NAMES

OWN_NAMES = (*RUN_NAMES, *ANSWER_NAMES, "model.safetensors", "config.json", "tokenizer.json", "checkpoint-1")


def test_a_run_is_replaced_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    train_in(tmp_path, "first", steps=2)
    before = set(contents(tmp_path))
    assert set(RunFolder(tmp_path).own()) == before - {MANIFEST_NAME}
    start(tmp_path)
    assert set(contents(tmp_path)) == {"config.yaml", "data.json", MANIFEST_NAME}
    assert (tmp_path / "config.yaml").read_text() == settings_text("next")
    train_in(tmp_path, "third")
    assert "third" in (tmp_path / "model.safetensors").read_text()
    assert not list(tmp_path.glob("_colm_*"))


@pytest.mark.parametrize("name", OWN_NAMES)
@pytest.mark.parametrize("held", [False, True])
def test_a_file_of_somebody_else_under_each_name_of_ours_stays(tmp_path: Path, name: str, held: bool) -> None:
    if held:
        train_in(tmp_path)
    theirs = tmp_path / name / "model.safetensors" if name.startswith("checkpoint") else tmp_path / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text('[{"prompt": "mine"}]\n')
    if name in ANSWER_NAMES:
        start(tmp_path)  # a training does not write these
        with pytest.raises(ConfigError, match=name):
            RunFolder(tmp_path).write(name, "{}\n")
    else:
        with pytest.raises(ConfigError, match=f"did not write, or that were changed since.*{name}.*Move them"):
            start(tmp_path)
    assert theirs.read_text() == '[{"prompt": "mine"}]\n'


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "selection.jsonl", "checkpoint-1/tokenizer.json"])
def test_a_file_that_was_changed_is_not_ours_any_more(tmp_path: Path, name: str) -> None:
    train_in(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-2] + b"#\n#\n")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=name):
        start(tmp_path)
    assert contents(tmp_path) == before


def test_a_change_that_leaves_the_size_is_seen(tmp_path: Path) -> None:
    train_in(tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("seed: 0", "seed: 1"))
    weights = tmp_path / "large.bin"
    weights.write_bytes(bytes(2**23))
    from colm.lab.run.recognize import identify

    before = identify(weights)
    with weights.open("r+b") as file:
        file.seek(2**22 + 2**19)
        file.write(b"x" * 2**18)
    assert identify(weights) != before
    with pytest.raises(ConfigError, match="config.yaml"):
        start(tmp_path)


def test_what_lies_beside_and_has_no_name_of_ours_is_left_alone(tmp_path: Path) -> None:
    train_in(tmp_path)
    theirs = {
        "checkpoint-best/model.safetensors": "mine",
        "checkpoint-1/notes.txt": "mine",
        "checkpoint-99/model.safetensors": "of steps that are not reached",
        "checkpoint-2-mine/optimizer.pt": "mine",
        "notes.txt": "mine",
        "selection.partial": "mine",
        "config.yaml.1": "mine",
        "runs/events": "mine",
    }
    for name, text in theirs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    start(tmp_path)
    train_in(tmp_path)
    held = contents(tmp_path)
    assert {name: held[name].decode() for name in theirs} == theirs


names = st.one_of(
    st.sampled_from([*OWN_NAMES, MANIFEST_NAME, LOCK_NAME, NEW, OLD, "checkpoint-2", "README.md", "labels.parquet"]),
    st.text("ab.-_1", min_size=1, max_size=6).filter(lambda name: name.strip(".")),
)
trees = st.dictionaries(
    st.lists(names, min_size=1, max_size=3).map("/".join), st.binary(max_size=20), min_size=1, max_size=6
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained")
    train_in(path, "old")
    return path


@settings(max_examples=60)
@given(tree=trees, held=st.booleans())
def test_any_tree_survives_bit_for_bit(trained: Path, tree: dict[str, bytes], held: bool) -> None:
    with TemporaryDirectory() as place:
        path = Path(place) / "out"
        if held:
            shutil.copytree(trained, path)
        path.mkdir(exist_ok=True)
        ours = contents(path)
        theirs = {}
        for name, content in tree.items():
            if name == LOCK_NAME and not content:
                continue  # as a process leaves it that was killed before it wrote its number
            target = path / name
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    target.write_bytes(content)
                    theirs[name] = content
            except (FileExistsError, NotADirectoryError):
                continue  # a file of another name is where the folder would be
        try:
            start(path)
            train_in(path)
        except ConfigError:  # refused, so all is as it was
            assert contents(path) == ours | theirs
        found = contents(path)
        assert {name: found.get(name) for name in theirs} == theirs


@pytest.mark.parametrize("part", ["file", "within"])
def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, part: str) -> None:
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "file" if part == "file" else tmp_path / "file" / "run"
    with pytest.raises(ConfigError, match="can ?not be"), RunFolder(path).hold():
        pass
    with pytest.raises(ConfigError, match="cannot be written"):
        RunFolder(path).prepare()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("text", ["notes\n", "[1, 2]", "{}", '{"version": 1, "files": {"../x": null}}'])
def test_a_list_that_is_not_ours_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(text)
    with pytest.raises(ConfigError, match="is not a list of files that this version of colm wrote"):
        start(tmp_path)
    assert (tmp_path / MANIFEST_NAME).read_text() == text


def as_of_an_older_version(path: Path) -> None:
    (path / MANIFEST_NAME).unlink()


def test_a_run_of_an_older_version_is_told_by_what_stands_in_it(tmp_path: Path) -> None:
    train_in(tmp_path, "old")
    as_of_an_older_version(tmp_path)
    ours = set(contents(tmp_path))
    (tmp_path / "examples.json").write_text("{}")
    (tmp_path / "generation_config.json").write_text("{}")
    folder = RunFolder(tmp_path)
    assert set(folder.own()) == ours - {"examples.json"}
    assert folder.last_checkpoint() == tmp_path / "checkpoint-1"
    with pytest.raises(ConfigError, match="examples.json, generation_config.json"):
        start(tmp_path)
    for name in ("examples.json", "generation_config.json"):
        (tmp_path / name).unlink()
    (tmp_path / "model.safetensors").write_text("weights of another trainer")
    with pytest.raises(ConfigError, match="model.safetensors"):
        start(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    start(tmp_path)
    assert set(contents(tmp_path)) == {"config.yaml", "data.json", MANIFEST_NAME}


def test_settings_alone_are_no_run_of_an_older_version(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(settings_text())
    (tmp_path / "data.json").write_text(fingerprint_text())
    assert RunFolder(tmp_path).own() == []


@pytest.mark.parametrize(
    ("change", "ours"),
    [
        ({}, True),
        ({"model": {"files": 1, "digest": "0"}}, True),
        ({"model": {"digest": "0"}}, False),
        ({"train": {"digest": "0"}}, False),
        ({"test": {"files": 1, "digest": "0"}}, False),
    ],
)
def test_a_fingerprint_is_recognized_by_what_each_part_has(tmp_path: Path, change: Any, ours: bool) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(json.loads(fingerprint_text()) | change, indent=2) + "\n")
    assert is_recognized(path) == ours


def test_what_came_while_the_run_trained_stays_and_the_model_is_kept(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.hold():
        folder.begin({"config.yaml": settings_text()})
        for name in ("model.safetensors", "README.md"):
            (tmp_path / name).write_text("mine")
        folder.staging.make()
        for name in ("model.safetensors", "README.md"):
            (folder.staging.new / name).write_text("trained")
        with pytest.raises(ConfigError, match=r"model.safetensors appeared in .* is in .*trained-\d+"):
            folder.adopt()
    assert (tmp_path / "model.safetensors").read_text() == (tmp_path / "README.md").read_text() == "mine"
    (kept,) = tmp_path.glob("trained-*/model.safetensors")
    assert kept.read_text() == "trained"


@pytest.mark.parametrize("name", ["plain", "1e5", "no", "007", "2020-01-01", "größe"])
@pytest.mark.parametrize("write", [write_yaml, lambda values: yaml.safe_dump(values, sort_keys=False)])
def test_settings_are_recognized_as_colm_writes_them(tmp_path: Path, name: str, write: Any) -> None:
    values = resolve_settings({"model": "tiny", "output_dir": "out", "data": {"source_column": name}}).values
    path = tmp_path / "seed-0.yaml"
    path.write_text(write(values), encoding="utf-8")
    assert is_settings_file(path)
    path.write_text(f"{write(values)}# mine\n", encoding="utf-8")
    assert not is_settings_file(path)
