"""Names of sources that mean something to the Trainer, to rich or to HTML are names like others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.support.commands import write_run
from tests.support.files import read_lines, write_lines
from transformers import PreTrainedModel

from colm.lab.cli import main
from colm.lab.cli.answer_tables import compare_table, harness_table, run_table
from colm.lab.cli.console import make_console
from colm.trainers.evaluation import SourceTrainer

METRICS = ["macro", "micro", "eval_set", "loss", "a/b", "eval_", "runtime", "eval", "set", "source/macro", "eval_macro"]
MARKUP = ["[bold]", "[/x]", "[red]hello", ":fire:", "<b>x</b>", "back\\[slash]"]


def write_named(folder: Path, names: list[str]) -> str:
    """Write rows of which each source has its own lengths, so that no two losses are alike."""
    config = write_run(folder)
    rows = [
        {"source": name, "prompt": f"{name} {i}: ", "completion": "abcdefghijk"[place % 11] * (place + 1)}
        for place, name in enumerate(names)
        for i in range(6)
    ]
    write_lines(folder / "rows.jsonl", rows)
    return config


def test_every_source_has_its_own_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, float]] = []
    found: list[dict[str, float]] = []

    def evaluate(self: SourceTrainer, *given: Any, **options: Any) -> dict[str, float]:
        seen.append(super(SourceTrainer, self).evaluate(*given, **options))
        found.append({name: losses_of(self.model, self, name) for name in self.validation})
        return seen[-1]

    monkeypatch.setattr(SourceTrainer, "evaluate", evaluate, raising=False)
    assert main(["train", write_named(tmp_path, METRICS), "training.max_steps=1"]) == 0
    lines = read_lines(tmp_path / "run" / "evaluations.jsonl")
    assert len(lines) == len(seen) == 2
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    for line, metrics, losses in zip(lines, seen, found, strict=True):
        assert line["losses"] == pytest.approx(losses, rel=1e-4)
        assert len(set(line["losses"].values())) == len(METRICS)
        macro = sum(losses.values()) / len(losses)
        assert metrics["eval_macro_loss"] == pytest.approx(macro, rel=1e-4)
        for name in METRICS:
            assert metrics[f"eval_loss/{name}"] == line["losses"][name]
    assert {name: source["eval_loss_after"] for name, source in summary["sources"].items()} == lines[1]["losses"]


def losses_of(model: PreTrainedModel, trainer: SourceTrainer, name: str) -> float:
    """Return a source's loss row by row."""
    losses = []
    assert isinstance(trainer.eval_dataset, Dataset)
    for row in trainer.eval_dataset:
        if row["source"] != name:
            continue
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=labels).loss))
    return sum(losses) / len(losses)


def test_tables_and_pages_show_names_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, rows = write_named(tmp_path, MARKUP), str(tmp_path / "rows.jsonl")
    run = tmp_path / "[b]" / "[" / "run"  # paths are data as well
    out = f"output_dir={run}"
    assert main(["sources", config, out]) == 0
    shown = capsys.readouterr().out
    assert main(["train", config, out, "training.max_steps=1"]) == 0
    trained = capsys.readouterr().out
    for name in MARKUP:
        assert shown.count(name) >= 3
        assert name in trained
    assert "[b]/[/run" in trained.replace("\n", "")
    assert main(["report", str(run)]) == 0
    for page in ("sources.html", "report.html"):
        text = (run / page).read_text()
        assert "<b>x" not in text
        assert "&lt;b&gt;x&lt;/b&gt;" in text
    assert main(["replay", str(run)]) == 0
    assert main(["eval", str(run), "--data", rows, "--max-new-tokens", "1"]) == 0
    assert "[red]hello" in capsys.readouterr().out


def test_tables_of_answers_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    share = {"value": 0.5, "low": 0.2, "high": 0.8}
    line = {"in_domain": True, "rows": 2, "exact": share, "cut_off": 0, "no_answer": 0, "prompts_cut": 0}
    group = {"rows": 2, "macro": share, "micro": share}
    figures = {"sources": {"[/x]": line | {"unanswerable": 0}}, "in_domain": group, "out_of_domain": None, "all": group}
    console = make_console()
    for table in (
        run_table(figures, "[/run]"),
        compare_table([("[/run]", figures, []), ("[bold]", figures, [])]),
        harness_table({"[/task]": {"[metric]": {"value": 0.5, "stderr": None}}}, "[/run]"),
    ):
        console.print(table)
    shown = capsys.readouterr().out
    for name in ("[/x]", "[/run]", "[bold]", "[/task]", "[metric]"):
        assert name in shown
