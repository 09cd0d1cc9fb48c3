"""Whatever stands behind an option of a command, or in a setting that is taken, there is no traceback."""

from __future__ import annotations

import shutil
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pytest
from tests.support.files import write_lines, write_settings

from colm.errors import ColmError, ConfigError, DataError
from colm.lab.cli import main
from colm.lab.run.folder import RunFolder
from colm.lab.run.target import find_target
from colm.step.record import CONFIG_NAME, DATA_NAME, SUMMARY_NAME

ODD = [
    *("", "abc", "-1", "0", "1.5", "nan", "inf", "1e400", "99999999999999999999", "1e-5", "None", "=", "--"),
    *("[1]", "{a: 1}", "x y", "folder", "binary.yaml", "list.yaml", "empty", "bad.jsonl", "/none/x", "a" * 300, "é"),
]
ONE = ("--limit", "1", "--max-new-tokens", "1")
CHANGES = ("", "keep=", "pools=", "adam=", "rows=", "temperature=")


def commands(odd: str) -> list[tuple[str, ...]]:
    """Return each command with the odd text in the place of each of its options."""
    plan, compare = ("plan", "run.yaml", "--gpu-memory"), ("compare", "run.yaml", "training.eval_steps=-1")  # refused
    assign = ("sources", "--assign", "rows.jsonl")
    fitted = ("--centroids", "fitted.centroids.npz", "--out", "labeled.jsonl")
    features, words = ("features",), ("--by", "words", "--out", "f.parquet")
    options = ("--limit", "--batch-size", "--seed", "--sample", "--data", "--tasks", "--source-column")
    return [
        ("plan", odd, "--gpu-memory", "24GiB"),
        (*plan, odd),
        *((*plan, "24GiB", option, odd) for option in ("--sequence-length", "--labelled")),
        *(("report", *names) for names in ((odd,), ("out", odd), ("out", "--out", odd))),
        *(("replay", *names) for names in ((odd,), ("out", f"output_dir={odd}", "training.max_steps=0"))),
        *(("sources", *names) for names in ((odd,), ("--cluster", odd), ("run.yaml", "--out", odd))),
        ("sources", "--cluster", "rows.jsonl", f"sources.cluster.clusters={odd}", "--out", "labels.parquet"),
        (*assign, "--centroids", odd, "--out", "labeled.jsonl"),
        *((*assign, *fitted, option, odd) for option in ("--assign", "--out", "--shard")),
        *((*assign, *fitted, f"{key}={odd}", "--overwrite") for key in ("data.columns", "data.source_column")),
        (*features, "--join", "--out", odd),
        *((*features, *names) for names in ((odd, *words), ("run.yaml", *words, f"data.format={odd}"))),
        *((*features, "run.yaml", *words, option, odd) for option in ("--by", "--out", "--dimensions", "--shard")),
        (*features, "run.yaml", "--by", "gradients", "--out", "g.parquet", "--model", odd),
        ("eval", odd, *ONE),
        *(("eval", "out", *ONE, option, odd) for option in options),
        *(("eval", "out", *ONE, f"{key}={odd}") for key in ("dtype", "data.columns", "data.format", "attention")),
        *(("train", "run.yaml", "--dry-run", *names) for names in ((odd,), (f"data.train={odd}", "--resume"))),
        *(("init", *names, "--out", "new.yaml") for names in ((odd,), ("rows.jsonl", odd))),
        *(("init", "rows.jsonl", *names) for names in (("--out", odd), ("--model", odd, "--out", "new.yaml"))),
        *(("merge", *names) for names in ((odd, "--out", "merged"), ("out", "--out", odd))),
        ("chat", odd),
        *(("chat", "out", option, odd) for option in ("--max-new-tokens", "--sample", "--seed", "--system")),
        ("completion", odd),
        ("schema", "--out", odd),
        ("env", odd),
        ("compare", odd),
        *((*compare, option, odd) for option in ("--seeds", "--methods", "--launcher", "--eval-data")),
        *((*compare, option, odd) for option in ("--equal", "--rates", "--batches")),
        (*compare, "--eval-data", "rows.jsonl", "--eval-options", odd),
        *(
            (*compare, "--methods", f"colm+{change}{odd}")
            for change in ("", "keep=", "pools=", "adam=", "rows=", "temperature=")
        ),
    ]


EXTREME = [
    *(
        "training.eval_use_gather_object=true",
        "training.include_for_metrics=[inputs, loss]",
        "training.max_grad_norm=.inf",
    ),
    *("training.remove_unused_columns=false", "training.eval_on_start=true", "training.length_column_name=abc"),
    *("training.data_seed=4294967295", "training.train_sampling_strategy=group_by_length", "training.use_cache=true"),
    *("training.train_sampling_strategy=batch_rebalance", "training.train_sampling_strategy=sequential"),
    *("training.disable_tqdm=true", "training.dataloader_drop_last=true", "training.neftune_noise_alpha=1e20"),
    *("training.accelerator_config={dispatch_batches: true}", "training.eval_accumulation_steps=1", "seed=4294967295"),
    *("training.optim=adafactor", "training.optim=rmsprop", "training.optim=sgd", "training.optim=adagrad"),
    *(
        "training.lr_scheduler_type=greedy",
        "training.lr_scheduler_type=reduce_lr_on_plateau",
        "training.warmup_steps=99",
    ),
    *("training.torch_empty_cache_steps=1", "training.skip_memory_metrics=false", "training.learning_rate=1e20"),
    *("training.include_num_input_tokens_seen=non_padding", "training.debug=underflow_overflow", "training.bf16=true"),
    *(
        "training.save_steps=1e-5",
        "training.logging_steps=1e-5",
        "training.eval_steps=1e-5",
        "training.label_names=[labels]",
    ),
    *("selection.coordinates=9223372036854775807", "selection.pass_tokens=9223372036854775807", "dtype=bfloat16"),
    *("selection.head_chunk_tokens=9223372036854775807", "selection.every=9223372036854775807", "dtype=float16"),
    *("selection.seed=4294967295", "data.max_length=9223372036854775807", "data.window=9223372036854775807"),
    *("lora={r: 1, lora_alpha: 1e20}", "lora={layer_replication: [[0, 1]]}", "lora={trainable_token_indices: [99999]}"),
    *(
        "lora={target_modules: '('}",
        "lora={exclude_modules: '('}",
        "lora={rank_pattern: {'(': 4}}",
        "lora={use_bdlora: {}}",
    ),
    *("lora={arrow_config: {}}", "lora={kasa_config: {}}", "lora={megatron_config: {a: 1}}", "lora={bias: all}"),
    *("lora={r: 9223372036854775807}", "lora={init_lora_weights: false}", "lora={alora_invocation_tokens: [1]}"),
    *(
        "lora={runtime_config: {ephemeral_gpu_offload: true}}",
        "training.push_to_hub=true",
        "training.metric_for_best_model=x",
    ),
]
"""Settings that are taken, or refused only once data or model are there."""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    names = ["big"] * 40 + ["small"] * 10
    rows = [
        {"source": name, "prompt": f"{name} {i} is ", "completion": f"{i * 7 % 13}"} for i, name in enumerate(names)
    ]
    write_lines(Path("rows.jsonl"), rows)
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2}
    training = {**sizes, "logging_steps": 1, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 1}
    data = {"train": "rows.jsonl", "max_length": 64, "validation_rows": 4}
    write_settings(tmp_path, {"model": "tiny", "data": data, "training": training, "output_dir": "out"})
    Path("folder").mkdir()
    for name, content in (
        ("binary.yaml", b"\x89PNG\x00"),
        ("list.yaml", b"- a\n"),
        ("empty", b""),
        ("bad.jsonl", b"{"),
    ):
        Path(name).write_bytes(content)
    return tmp_path


@pytest.mark.slow
def test_odd_texts_behind_options(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("A question\n"))  # for chat
    assert main(["train", "run.yaml"]) == 0
    assert main(["sources", "--cluster", "rows.jsonl", "--out", "fitted.parquet", "sources.cluster.clusters=2"]) == 0
    tried = 0
    for odd in ODD:
        for command in commands(odd):
            tried += 1
            try:
                status: object = main(command)
            except SystemExit as stopped:  # argparse's own message
                status = stopped.code
            assert status in (0, 2), command
    assert tried > 700
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_extreme_settings_that_are_taken(work: Path) -> None:
    for setting in EXTREME:
        shutil.rmtree("out", ignore_errors=True)
        assert main(["train", "run.yaml", setting]) in (0, 2), setting


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"null", b"\x89PNG\x00", b'{"sources": 5}'])
def test_files_of_a_run_that_are_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CONFIG_NAME).write_text("{model: tiny, output_dir: out, data: {train: demo}}")
    for name in (SUMMARY_NAME, DATA_NAME):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{SUMMARY_NAME} is damaged"):
        find_target(str(tmp_path), [])
    if content != b'{"sources": 5}':
        with pytest.raises(DataError, match=f"{DATA_NAME} is damaged"):
            RunFolder(tmp_path).fingerprint()
    (tmp_path / CONFIG_NAME).write_bytes(content)
    with suppress(ColmError):  # JSON of a mapping is YAML of one
        RunFolder(tmp_path).config()
