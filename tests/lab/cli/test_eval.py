"""`colm eval` as a user runs it, on tiny models trained here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.support.commands import write_run
from tests.support.files import read_lines, write_lines

from colm.errors import ConfigError
from colm.lab.cli import main
from colm.lab.evaluate import judge
from colm.lab.run import target as targets
from colm.lab.run.answers import run_written
from colm.lab.run.folder import RunFolder
from colm.step.record import MANIFEST_NAME, PARTIAL_ANSWERS_NAME

QUESTIONS = [
    {"source": name, "prompt": f"{name} {i}: ", "completion": f"So.\nThe answer is {answer}."}
    for i in range(24)
    for name, answer in (("colour", "red"), ("truth", "yes"), ("number", "1,200"))
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a run that has learned the answers of its three sources."""
    folder = tmp_path_factory.mktemp("trained")
    training = {"per_device_train_batch_size": 8, "max_steps": 80, "learning_rate": 5e-3, "use_cpu": True}
    data = {"train": write_lines(folder / "questions.jsonl", QUESTIONS), "validation_rows": 3, "max_length": 64}
    data |= {"chat_template": False}
    config = write_run(folder, data=data, training={**training, "save_strategy": "no"}, selection={"features": "none"})
    assert main(["train", config]) == 0
    return folder / "run"


def test_a_run_is_asked_what_it_held_out(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(trained), "--max-new-tokens", "16", "--batch-size", "4"]) == 0
    shown = capsys.readouterr().out
    assert "colour" in shown
    assert "mean, in-domain" in shown
    assert "out-of-domain" not in shown
    figures = json.loads((trained / "answers.json").read_text())
    assert figures["in_domain"]["rows"] == 9
    assert figures["in_domain"]["macro"]["value"] > 0.6
    assert figures["out_of_domain"] is None
    assert figures["settings"]["temperature"] == 0
    lines = read_lines(trained / "answers.jsonl")
    assert [line["index"] for line in lines] == list(range(9))
    right = [line for line in lines if line["right"]]
    assert right[0]["completion"].startswith("So.\nThe answer is")
    assert right[0]["extracted"] == right[0]["expected"]
    assert len({line["prompt"] for line in lines}) == 9
    assert {name.name for name in trained.glob("answers*")} == {"answers.json", "answers.jsonl"}


def test_other_data_is_out_of_domain_and_runs_stand_beside_each_other(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    held = write_lines(tmp_path / "held.jsonl", QUESTIONS[:12])
    other = [{"instruction": f"other {i}", "answer": "5" if i else None} for i in range(4)]
    files = f"{held},{write_lines(tmp_path / 'other.jsonl', other)}"
    command = ["eval", str(trained), str(trained), "--data", files]
    assert main(command) == 2
    assert "is given twice" in capsys.readouterr().err
    model = tmp_path / "model"  # the same weights as a model by name
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((trained / name).read_bytes())
    command[2] = "model"
    assert main([*command, "--max-new-tokens", "12", "--limit", "3", "--out", "out"]) == 0
    shown = capsys.readouterr().out
    for words in ("mean, in-domain", "mean, out-of-domain", "mean, all sources", "side by side", "+0.0"):
        assert words in shown
    assert "1 rows without a final answer were left out" in " ".join(shown.split())
    first, second = (json.loads((tmp_path / "out" / name / "answers.json").read_text()) for name in ("run", "model"))
    assert first["sources"] == second["sources"]  # a model's sources are in-domain as the run's beside it are
    assert first["sources"]["other"]["in_domain"] is False
    assert first["sources"]["other"]["unanswerable"] == 1
    assert first["sources"]["colour"]["rows"] == 3
    assert first["out_of_domain"]["sources"] == 1
    assert main(["eval", "model", "--data", held, "--max-new-tokens", "2", "--limit", "1", "--sample", "1"]) == 0
    alone = json.loads((tmp_path / "answers" / "model" / "answers.json").read_text())
    assert alone["in_domain"] is None
    assert alone["all"]["rows"] == 3
    assert alone["sources"]["colour"]["cut_off"] >= 0


def test_an_adapter_on_a_random_base_answers_as_it_was_trained(tmp_path: Path) -> None:
    config = write_run(tmp_path, lora={"r": 4}, seed=3)
    command = ["train", config, "data.chat_template=false"]
    assert main([*command, "training.max_steps=2", 'training.save_strategy="no"']) == 0
    model, tokenizer = targets.load_target(targets.find_target(str(tmp_path / "run"), []))
    evaluations = read_lines(tmp_path / "run" / "evaluations.jsonl")
    rows = [row for row in read_lines(tmp_path / "rows.jsonl") if row["source"] == "rare"]
    losses = []
    for row in rows:
        head, tail = tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"])["input_ids"]
        ids = torch.tensor([head + tail + [tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[0, : len(head)] = -100
        losses.append(float(model(input_ids=ids, labels=labels).loss))
    # The mean of two held-out rows lies among those of all rows, which a base drawn anew would miss.
    assert min(losses) - 1e-4 <= evaluations[-1]["losses"]["rare"] <= max(losses) + 1e-4
    assert main(["eval", str(tmp_path / "run"), "--limit", "1", "--max-new-tokens", "1"]) == 0
    assert main([*command, "training.max_steps=3", "--resume"]) == 0
    assert not (tmp_path / "run" / "answers.json").exists()  # they were another model's
    (tmp_path / "run" / "adapter_config.json").write_text('{"peft_type": "NONE"}')
    with pytest.raises(ConfigError, match="The adapter_config.json of .* cannot be read"):
        targets.load_target(targets.find_target(str(tmp_path / "run"), []))


def test_an_evaluation_goes_on_where_it_was_killed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["eval", str(trained), "--max-new-tokens", "4", "--batch-size", "3", "--out", str(tmp_path)]
    command += ["--sample", "1"]  # the draws are those of an evaluation that was not killed
    calls: list[int] = []
    generate = judge.generate_batch

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*args, **kwargs)

    monkeypatch.setattr(judge, "generate_batch", killed)
    assert main(command) == 130
    assert {path.name for path in tmp_path.iterdir()} == {PARTIAL_ANSWERS_NAME, MANIFEST_NAME}
    assert len(read_lines(tmp_path / PARTIAL_ANSWERS_NAME)) == 4
    with (tmp_path / PARTIAL_ANSWERS_NAME).open("a") as file:
        file.write('{"source": "colo')  # cut off while it was written
    assert main(command) == 0
    assert calls == [3, 3, 3, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"answers.json", "answers.jsonl", MANIFEST_NAME}
    lines = read_lines(tmp_path / "answers.jsonl")
    assert [line["index"] for line in lines] == list(range(9))
    RunFolder(tmp_path).grow([PARTIAL_ANSWERS_NAME])
    (tmp_path / PARTIAL_ANSWERS_NAME).write_text('{"run": "", "questions": "", "weights": []}\n')  # of other settings
    assert main(command) == 0
    assert calls == [3] * 7
    assert read_lines(tmp_path / "answers.jsonl") == lines


def test_a_batch_too_large_for_the_memory(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(judge, "generate_batch", fail)
    assert main(["eval", str(trained), "--batch-size", "3", "--out", str(tmp_path)]) == 2
    assert "--batch-size 3 needs more memory than is available; lower it" in capsys.readouterr().err


def test_programs_run_only_where_asked_for(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"source": "code", "prompt": f"{i}: ", "completion": "print(2 + 3)"} for i in range(2)]
    command = ["eval", str(trained), "--data", write_lines(tmp_path / "code.jsonl", rows), "--max-new-tokens", "2"]
    command += ["--out", str(tmp_path)]
    ran: list[str] = []
    monkeypatch.setattr("colm.lab.run.answers.run_program", lambda source: ran.append(source) or "5\n")
    assert main(command) == 0
    assert ran == []
    assert main([*command, "--run-programs"]) == 0
    assert ran[:2] == ["print(2 + 3)"] * 2
    assert {line["expected"] for line in read_lines(tmp_path / "answers.jsonl")} == {"5"}
    assert run_written("no program") is None

    def refuse(source: str) -> None:
        raise ConfigError("Programs cannot be sandboxed")

    monkeypatch.setattr("colm.lab.run.answers.run_program", refuse)
    capsys.readouterr()
    assert main([*command, "--run-programs"]) == 2
    assert "cannot be sandboxed" in capsys.readouterr().err


def test_tasks_of_the_harness(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"gsm8k": {"exact_match,strict": {"value": 0.25, "stderr": None}}}
    monkeypatch.setattr("colm.lab.evaluate.harness.run_harness", lambda *args, **kwargs: scores)
    assert main(["eval", str(trained), "--tasks", "gsm8k,mmlu", "--out", str(tmp_path)]) == 0
    assert "0.2500" in capsys.readouterr().out
    assert json.loads((tmp_path / "harness.json").read_text()) == scores
    assert not (tmp_path / "answers.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such-model", "--data", "held.jsonl"], "is neither an output folder of colm train nor a model"),
        (["empty"], "neither the output folder of colm train (no config.yaml) nor a model"),
        (["unfinished"], "The run unfinished has not finished (there is no summary.json)"),
        (["compared"], "compared contains a comparison; give its runs"),
        (["tiny"], "'tiny' is a random model"),
        (["demo"], "'demo' is not the folder of a run, and a model has no data of its own; give the output_dir"),
        (["runs/typo"], "'runs/typo' is not the folder of a run, and a model has no data of its own"),
        (["unheld"], "has no held-out rows; give questions with --data"),
        (["RUN", "--data", "hled.jsonl"], "no file 'hled.jsonl'. Did you mean 'held.jsonl'"),
        (["RUN", "--data", "text.jsonl"], "only text, which has no prompt to answer"),
        (["RUN", "--data", "wrong.jsonl"], "no question with its answer. Did you mean 'prompt'"),
        (["RUN", "--data", "null.jsonl"], "None of the 1 rows has a final answer"),
        (["RUN", "--limit", "0"], "--limit=0 must be at least 1 row per source"),
        (["RUN", "--seed", "-1"], "--seed=-1 must be a whole number of at least 0"),
        (
            ["RUN", "--seed", str(10**22)],
            f"--seed={10**22} must be a whole number of at least 0 and at most 4,294,967,295",
        ),
        (["RUN", "--sample", "-0.5"], "--sample=-0.5 must be a temperature from 0"),
        (["RUN", "--batch-size", "0"], "--batch-size=0 must be a whole number of at least 1"),
        (["RUN", "--max-new-tokens", "0"], "--max-new-tokens=0 must be a whole number of at least 1"),
        (["RUN", "--max-new-tokens", "512"], "leaves no room for a prompt in the model's context of 512"),
        (["RUN", "selection.keep=0.25"], "'selection.keep=0.25' has no effect on an evaluation"),
    ],
)
def test_what_can_not_be_evaluated(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "unfinished", "compared", "unheld"):
        (tmp_path / name).mkdir()
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    settings["data"]["validation_rows"] = 0
    for name in ("unfinished", "unheld"):
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "unheld" / "summary.json").write_bytes((trained / "summary.json").read_bytes())
    (tmp_path / "compared" / "compare.json").write_text("{}")
    write_lines(tmp_path / "held.jsonl", QUESTIONS[:3])
    write_lines(tmp_path / "text.jsonl", [{"text": "abc"}])
    write_lines(tmp_path / "wrong.jsonl", [{"promt": "abc", "answer": "5"}])
    write_lines(tmp_path / "null.jsonl", [{"prompt": "abc", "answer": None}])
    arguments = [str(trained) if argument == "RUN" else argument for argument in arguments]
    assert main(["eval", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_columns_may_be_mapped(trained: Path, tmp_path: Path) -> None:
    rows = [{"kind": "colour", "question": "colour 3: ", "solution": "red"}]
    command = ["eval", str(trained), "--data", write_lines(tmp_path / "q.jsonl", rows), "--source-column", "kind"]
    command += ["data.columns={prompt: question, answer: solution}", "--max-new-tokens", "12", "--out", str(tmp_path)]
    assert main(command) == 0
    (line,) = read_lines(tmp_path / "answers.jsonl")
    assert (line["source"], line["expected"], line["prompt"]) == ("colour", "red", "colour 3: ")
    (tmp_path / "answers.jsonl").unlink()
    assert main([*command, "data.chat_template=true"]) == 0
    (line,) = read_lines(tmp_path / "answers.jsonl")
    assert line["prompt"] == "user:\ncolour 3:\nassistant:\n"
