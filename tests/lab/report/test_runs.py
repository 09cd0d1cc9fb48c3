"""Reading run folders: finished, older, in progress and broken ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.files import read_lines, write_lines
from tests.support.reports import SIZES, find_small, write_run

from colm.errors import ConfigError
from colm.lab.report.runs import Step, name_folders, read_run


def test_a_finished_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "mine", steps=20))
    assert run.name == "mine"
    assert run.finished
    assert run.summary is not None
    assert run.summary.peak_memory == 3 * 2**30
    assert run.rows == SIZES
    assert sorted(run.small) == find_small(SIZES) == ["history", "poems"]
    assert run.sources == list(SIZES)
    assert [step.number for step in run.steps] == list(range(1, 21))
    assert sum(run.pooled.values()) == 20 * 64
    assert run.kept["poems"] == run.pooled["poems"]
    assert [each.step for each in run.evaluations] == list(range(0, 21, 2))
    assert [each.step for each in run.losses] == [5, 10, 15, 20]
    assert run.losses[0].loss > run.losses[3].loss
    assert len(run.most_kept) == len(run.least_kept) == 5
    assert run.most_kept[1].row == 17
    assert run.selection["features"] == "exact"


def test_lines_become_counts_by_source(tmp_path: Path) -> None:
    line = {"pool": {"a": [4, 9, 7], "b": [1]}, "kept": {"a": [9], "b": [1]}, "pool_count": 4, "kept_count": 2}
    folder = write_run(tmp_path / "mine", steps=1, line={**line, "small_kept": 1, "seconds": 0.5, "step_seconds": None})
    assert read_run(folder).steps == [
        Step(1, 4, 2, 1, 0, 0, 0.5, None, *read_run(folder).steps[0][8:10], {"a": 3, "b": 1}, {"a": 1, "b": 1})
    ]


def test_a_run_in_progress_is_judged_by_the_rows_seen(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine", finished=False)
    with (folder / "selection.jsonl").open("a") as file:
        file.write('{"step": 60, "pool_cou')  # left by a crash
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write('{"step": 70')
    run = read_run(folder)
    assert not run.finished
    assert run.summary is None
    assert len(run.steps) == 60
    assert len(run.evaluations) == 11
    assert run.rows == run.pooled
    assert run.trained == set(SIZES)
    assert sorted(run.small) == ["history", "poems"]
    listed = read_run(write_run(tmp_path / "listed", finished=False, selection={"small_sources": ["code"]}))
    assert listed.small == {"code"}
    assert read_run(write_run(tmp_path / "all", finished=False, selection={"small_sources": "none"})).small == set()
    assert read_run(write_run(tmp_path / "one", finished=False, sizes={"code": 9})).small == set()


def test_a_run_resumed_after_its_summary_has_not_finished(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "mine")
    first = (folder / "selection.jsonl").read_text().splitlines()[0]
    with (folder / "selection.jsonl").open("a") as file:
        file.write(json.dumps({**json.loads(first), "step": 60}) + "\n")
    run = read_run(folder)
    assert not run.finished
    assert run.rows == SIZES  # the data is the same


def test_an_older_run_without_the_newer_files_and_fields(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "old")
    for name in ("evaluations.jsonl", "examples.json", "losses.jsonl"):
        (folder / name).unlink()
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("small_sources", "peak_memory_bytes", "memory_kind"):
        del summary[key]
    summary["sources"]["poems"]["eval_loss_before"] = None
    (folder / "summary.json").write_text(json.dumps(summary))
    newer = ("step_seconds", "match", "match_random")
    lines = read_lines(folder / "selection.jsonl")
    cut = [{key: value for key, value in line.items() if key not in newer} for line in lines]
    write_lines(folder / "selection.jsonl", cut)
    run = read_run(folder)
    assert run.finished
    assert sorted(run.small) == ["history", "poems"]
    assert [(each.step, each.rows, set(each.losses)) for each in run.evaluations] == [
        (0, 0, set(SIZES) - {"poems"}),
        (60, None, set(SIZES)),
    ]
    assert run.summary is not None
    assert run.summary.peak_memory is None
    assert run.steps[0].match is None
    assert run.most_kept == []


def test_no_folder_and_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no folder '.*gone'; give the output_dir of a run"):
        read_run(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"contains no run: there is no selection\.jsonl"):
        read_run(tmp_path)
    (tmp_path / "config.yaml").write_text("model: demo\n")
    with pytest.raises(ConfigError, match=r"has no step yet: there is no selection\.jsonl"):
        read_run(tmp_path)
    (tmp_path / "selection.jsonl").write_text('{"step": 0')
    with pytest.raises(ConfigError, match="is empty so far; wait"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("selection.jsonl", "{}\n", r"selection\.jsonl, line 1, lacks 'step'; it was not written by this version"),
        ("selection.jsonl", "not json\n{}\n", r"selection\.jsonl, line 1, is not valid JSON"),
        ("selection.jsonl", "[1]\n", r"selection\.jsonl, line 1, is not a JSON object, so colm train did not write it"),
        ("evaluations.jsonl", '{"step": 1}\n', r"evaluations\.jsonl, line 1, lacks 'losses'"),
        ("summary.json", '{"steps": 1', r"summary\.json is not valid JSON"),
        ("summary.json", "{}", r"summary\.json lacks 'sources'"),
        ("examples.json", '{"most_kept": 3, "least_kept": []}', r"examples\.json does not have the format"),
        ("config.yaml", "model: [", r"config\.yaml is not valid YAML"),
        ("config.yaml", "- 1", r"config\.yaml contains a list; it must be a mapping"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = write_run(tmp_path / "mine", steps=10)
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_run(folder)


def test_names_are_as_short_as_possible() -> None:
    assert name_folders([Path("runs/a"), Path("runs/b")]) == ["a", "b"]
    assert name_folders([Path("x/a/seed-0"), Path("x/b/seed-0")]) == ["a/seed-0", "b/seed-0"]
    with pytest.raises(ConfigError, match="runs/a is given twice; give each run once"):
        name_folders([Path("runs/a"), Path("runs/a")])
