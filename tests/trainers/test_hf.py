"""CoresetTrainer: like the Trainer, except for the rows it trains on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import tiny_model
from tests.support.trainers import (
    arguments,
    collate,
    coreset_trainer,
    example_mean_of_outputs,
    lines,
    mixture,
    same_weights,
    weights,
)
from transformers import Trainer, TrainerCallback

from colm import ConfigError, CoresetTrainer, SelectionConfig
from colm.losses import example_mean
from colm.trainers.columns import CollatorWithCodes


@pytest.mark.parametrize("features", ["exact", "spsa", "none"])
def test_a_run_learns_records_and_repeats(tmp_path: Path, features: Any) -> None:
    runs = []
    for name in ("one", "two"):
        trainer = coreset_trainer(tmp_path / name, selection=SelectionConfig(features=features), args={"max_steps": 20})
        before = trainer.evaluate(mixture(seed=1))["eval_loss"]
        torch.manual_seed(0)
        trainer.train()
        after = trainer.evaluate(mixture(seed=1))["eval_loss"]
        assert after < before - 0.3
        runs.append((weights(trainer), lines(tmp_path / name)))
    assert same_weights(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert [line["step"] for line in runs[0][1]] == list(range(20))
    for line in runs[0][1]:
        pool = sorted(i for rows in line["pool"].values() for i in rows)
        kept = sorted(i for rows in line["kept"].values() for i in rows)
        assert len(pool) == line["pool_count"] == 12
        assert len(kept) == line["kept_count"] == 6
        assert set(kept) <= set(pool)
        small = [i for source in ("c", "d") for i in line["pool"].get(source, [])]
        assert set(small) <= set(kept)
    data = mixture()
    assert all(data[i]["source"] == source for source, rows in runs[0][1][0]["pool"].items() for i in rows)
    assert trainer.figures.pooled == {
        source: sum(len(line["pool"].get(source, [])) for line in runs[0][1]) for source in "abcd"
    }


@pytest.mark.parametrize("loss", ["example", "token"])
def test_keeping_everything_is_the_plain_trainer(tmp_path: Path, loss: Any) -> None:
    # In float64: rows are summed in another order, and Adam magnifies the rounding of a gradient near 0.
    ours = coreset_trainer(
        tmp_path / "ours",
        selection=SelectionConfig(keep=1.0, loss=loss),
        model=tiny_model("llama", num_hidden_layers=2).double(),
    )

    class ExampleTrainer(Trainer):
        """The plain Trainer with the same loss and the same count of rows."""

        def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
            if loss == "token":
                return super()._get_num_items_in_batch(batch_samples, device)
            return torch.tensor(sum(len(batch["input_ids"]) for batch in batch_samples))

    plain = ExampleTrainer(
        model=tiny_model("llama", num_hidden_layers=2).double(),
        args=arguments(tmp_path / "plain"),
        train_dataset=mixture(),
        data_collator=CollatorWithCodes(collate, "source"),
        compute_loss_func=example_mean_of_outputs if loss == "example" else None,
    )
    for trainer in (ours, plain):
        torch.manual_seed(0)
        trainer.train()
    for a, b in zip(weights(ours), weights(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=5e-6)  # the Trainer rounds logits of float64 to float32
    ours_losses = [log["loss"] for log in ours.state.log_history if "loss" in log]
    plain_losses = [log["loss"] for log in plain.state.log_history if "loss" in log]
    assert ours_losses == pytest.approx(plain_losses, rel=1e-5)


def test_the_token_loss_is_the_mean_over_the_kept_rows_tokens(tmp_path: Path) -> None:
    trainer = coreset_trainer(tmp_path, selection=SelectionConfig(loss="token"), args={"max_steps": 1})
    counts: list[int] = []

    def count(batches: list[Any], device: torch.device) -> Any:
        found = type(trainer)._get_num_items_in_batch(trainer, batches, device)
        counts.append(int(found))
        return found

    trainer._get_num_items_in_batch = count
    trainer.train()
    data = mixture()
    kept = [i for rows in lines(tmp_path)[0]["kept"].values() for i in rows]
    assert counts[-1] == sum(label != -100 for i in kept for label in data[i]["labels"][1:])


@pytest.mark.parametrize("features", ["exact", "spsa"])
def test_a_resumed_run_ends_as_one_that_never_stopped(tmp_path: Path, features: Any) -> None:
    selection = SelectionConfig(features=features)
    args = {"save_strategy": "steps", "save_steps": 2, "max_steps": 10}
    whole = coreset_trainer(tmp_path / "whole", selection=selection, args=args)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 5

    first = coreset_trainer(tmp_path / "cut", selection=selection, args=args, callbacks=[Stop()])
    first.train()
    assert len(lines(tmp_path / "cut")) == 5
    resumed = coreset_trainer(tmp_path / "cut", selection=selection, args=args)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert same_weights(whole, resumed)
    assert resumed.figures.pooled == whole.figures.pooled
    (tmp_path / "cut" / "checkpoint-6" / "coreset_complete.json").unlink()
    with pytest.raises(ConfigError, match="checkpoint-6 is not a complete checkpoint"):
        coreset_trainer(tmp_path / "cut", selection=selection, args=args).train(
            resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-6")
        )


def test_logs_hold_the_selections_figures(tmp_path: Path) -> None:
    trainer = coreset_trainer(tmp_path, args={"logging_steps": 2, "max_steps": 4})
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    for log in logs:
        assert log["coreset_pool"] == 12
        assert log["coreset_kept"] == 6
        assert 0 < log["selection_share"] < 1
        assert log["selection_seconds"] > 0
        assert -1 <= log["coreset_match_random"] <= log["coreset_match"] + 0.2 <= 1.2
        assert "coreset_small_kept" in log
        # Every step kept 6 rows, so the mean over sources' losses is the logged loss.
        by_source = [(log[f"kept/{source}"], log[f"loss/{source}"]) for source in "abcd" if log[f"kept/{source}"]]
        assert sum(rows * loss for rows, loss in by_source) / 6 == pytest.approx(log["loss"], rel=1e-4)
    steps, data = lines(tmp_path), mixture()
    for source in "abcd":
        kept = [line["kept"].get(source, []) for line in steps]
        assert logs[1][f"kept/{source}"] == sum(map(len, kept[2:])) / 2
        assert logs[1][f"pool/{source}"] == sum(len(line["pool"].get(source, [])) for line in steps[2:]) / 2
        assert logs[1][f"share/{source}"] == pytest.approx(sum(map(len, kept)) / 24, abs=1e-6)
        tokens = [sum(len(data[i]["input_ids"]) for i in rows) for rows in kept]
        assert [line["tokens"].get(source, 0) for line in steps] == tokens
        assert logs[1][f"tokens/{source}"] == sum(tokens[2:]) / 2
    assert sum(logs[1][f"token_share/{source}"] for source in "abcd") == pytest.approx(1, abs=1e-5)
    few = coreset_trainer(tmp_path / "few", selection=SelectionConfig(log_sources=False), args={"max_steps": 1})
    few.train()
    assert not any("/" in key for key in few.state.log_history[0])


def test_a_torch_dataset_and_evaluation_on_coded_rows(tmp_path: Path) -> None:
    rows = list(mixture(40))
    trainer = coreset_trainer(tmp_path, train_dataset=rows, args={"max_steps": 4, "num_train_epochs": 2})
    trainer.train()  # 40 rows in pools of 12: the last has 4 rows in one micro-batch
    assert [line["pool_count"] for line in lines(tmp_path)] == [12, 12, 12, 4]
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] > 0
    kept_text = coreset_trainer(tmp_path / "text", args={"remove_unused_columns": False, "max_steps": 1})
    kept_text.train()


def test_formatted_datasets(tmp_path: Path) -> None:
    keys = ["input_ids", "attention_mask", "labels"]
    chosen = mixture().with_format("numpy", columns=keys)
    made = mixture().with_transform(lambda rows: {key: rows[key] for key in keys})

    def collate_arrays(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return collate([{key: list(row[key]) for key in keys} for row in rows])

    for number, dataset in enumerate((chosen, made)):
        trainer = CoresetTrainer(
            tiny_model(),
            arguments(tmp_path / str(number), max_steps=1),
            train_dataset=dataset,
            data_collator=collate_arrays,
        )
        trainer.train()
        assert lines(tmp_path / str(number))[0]["pool_count"] == 12


def test_lora_and_sgd(tmp_path: Path) -> None:
    trainer = coreset_trainer(
        tmp_path, model=tiny_model("llama", lora=True), args={"optim": "sgd", "max_steps": 2, "bf16": True}
    )
    trainer.train()
    assert trainer.selector.state_dict()["m"] is None


def test_a_second_training_starts_afresh(tmp_path: Path) -> None:
    trainer = coreset_trainer(tmp_path, args={"max_steps": 3})
    trainer.train()
    trainer.train()
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]
    assert trainer.selector.state_dict()["step"] == 3
    assert sum(trainer.figures.pooled.values()) == 36


def test_a_skipped_optimizer_step_keeps_the_history(tmp_path: Path) -> None:
    class Skipped(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            trainer.optimizer._is_overflow = state.global_step == 1  # what a float16 scaler reports

    trainer = coreset_trainer(tmp_path, args={"max_steps": 3}, callbacks=[Skipped()])
    trainer.train()
    assert trainer.selector.state_dict()["step"] == 3
    assert trainer.selector.state_dict()["updates"] == 2


def test_your_own_loss_gets_the_token_count(tmp_path: Path) -> None:
    seen: list[int] = []

    def own(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        seen.append(int(num_items_in_batch))
        return example_mean_of_outputs(outputs, labels)

    trainer = coreset_trainer(
        tmp_path, selection=SelectionConfig(loss="token"), args={"max_steps": 1}, compute_loss_func=own
    )
    trainer.train()
    kept = [i for rows in lines(tmp_path)[0]["kept"].values() for i in rows]
    assert set(seen) == {sum(label != -100 for i in kept for label in mixture()[i]["labels"][1:])}


def test_resuming_uses_the_last_complete_checkpoint(tmp_path: Path) -> None:
    args = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    coreset_trainer(tmp_path, args=args).train()
    (tmp_path / "checkpoint-6" / "coreset_complete.json").unlink()
    resumed = coreset_trainer(tmp_path, args=args)
    resumed.train(resume_from_checkpoint=True)
    assert [line["step"] for line in lines(tmp_path)] == list(range(6))
    with pytest.raises(ConfigError, match="no complete checkpoint to resume from"):
        coreset_trainer(tmp_path / "new").train(resume_from_checkpoint=True)


def test_model_init_gives_the_selector_the_new_model(tmp_path: Path) -> None:
    trainer = CoresetTrainer(
        model_init=lambda: tiny_model("llama", num_hidden_layers=2),
        args=arguments(tmp_path, max_steps=2),
        train_dataset=mixture(),
        data_collator=collate,
    )
    trainer.train()
    assert trainer.selector.model is trainer.model
    assert trainer.selector.site is not None
    assert trainer.selector.site.module is trainer.model.model.layers[-1].self_attn.v_proj


def test_the_loss_weights_rows_as_the_coreset_does(tmp_path: Path) -> None:
    trainer = coreset_trainer(tmp_path, selection=SelectionConfig(weights="represented"), args={"max_steps": 1})
    coresets: list[Any] = []
    select = trainer.selector.select

    def keep(*args: Any, **kwargs: Any) -> Any:
        coresets.append((select(*args, **kwargs), kwargs["dataset_index"]))
        return coresets[-1][0]

    trainer.selector.select = keep
    data, model = mixture(), trainer.model
    losses = []
    for i in range(len(data)):
        row = {key: torch.tensor([data[i][key]]) for key in ("input_ids", "labels")}
        with torch.no_grad():
            losses.append(float(example_mean(model(input_ids=row["input_ids"]).logits, row["labels"])))
    trainer.train()
    (coreset, index) = coresets[0]
    expected = sum(
        w * losses[index[p]] for p, w in zip(coreset.indices.tolist(), coreset.weights.tolist(), strict=True)
    )
    logged = next(log["loss"] for log in trainer.state.log_history if "loss" in log)
    assert len(set(coreset.weights.tolist())) > 1
    assert logged == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("selection", [{}, {"weights": "represented"}])
def test_a_replay_ends_at_the_same_weights(tmp_path: Path, selection: dict[str, Any]) -> None:
    config = SelectionConfig(**selection)
    first = coreset_trainer(tmp_path / "run", selection=config)
    torch.manual_seed(0)
    first.train()
    again = coreset_trainer(tmp_path / "again", selection=config, replay=tmp_path / "run" / "selection.jsonl")
    torch.manual_seed(0)
    again.train()
    assert lines(tmp_path / "again") == lines(tmp_path / "run")
    assert same_weights(first, again)
    assert again.selector.state_dict()["m"] is None  # nothing was selected

    longer = coreset_trainer(
        tmp_path / "longer", replay=tmp_path / "run" / "selection.jsonl", selection=config, args={"max_steps": 9}
    )
    torch.manual_seed(0)
    longer.train()
    assert longer.state.global_step == 6  # where the record ends
