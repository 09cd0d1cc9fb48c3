"""Options of the Trainer with selection: each takes effect, changes nothing that it must not, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import ragged_batch, tiny_model
from tests.support.trainers import arguments, collate, coreset_trainer, lines, mixture, same_weights, weights
from transformers import TrainerCallback

from colm import ConfigError, CoresetSelector, CoresetTrainer, SelectionConfig, example_mean


class FirstGradient(TrainerCallback):
    """Keeps the gradient of the first step."""

    found: torch.Tensor | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **kwargs: Any) -> None:
        if self.found is None:
            self.found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def run(folder: Path, *, selection: SelectionConfig | None = None, **changes: Any) -> tuple[Any, torch.Tensor]:
    gradient = FirstGradient()
    torch.manual_seed(0)
    trainer = coreset_trainer(folder, selection=selection, callbacks=[gradient], **changes)
    torch.manual_seed(0)
    trainer.train()
    assert gradient.found is not None
    return trainer, gradient.found


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
    """Return lines and weights of a run without further options."""
    folder = tmp_path_factory.mktemp("plain")
    trainer, _ = run(folder)
    return lines(folder), weights(trainer)


@pytest.mark.parametrize("accumulation", [2, 16, 64])
def test_accumulation_changes_nothing(tmp_path: Path, accumulation: int) -> None:
    found = []
    for steps in (1, accumulation):
        trainer, gradient = run(
            tmp_path / str(steps),
            selection=SelectionConfig(keep_count=64),
            train_dataset=mixture(256),
            args={"per_device_train_batch_size": 128 // steps, "gradient_accumulation_steps": steps, "max_steps": 2},
        )
        logs = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        found.append((lines(tmp_path / str(steps))[0]["kept"], gradient, logs[0]))
    (kept, gradient, loss), (other_kept, other_gradient, other_loss) = found
    assert other_kept == kept
    assert float((other_gradient - gradient).norm() / gradient.norm()) < 1e-5
    assert other_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    "args",
    [
        {"gradient_checkpointing": True},
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 4},
        {"eval_strategy": "steps", "eval_steps": 1},
        {"torch_empty_cache_steps": 1},
    ],
    ids=str,
)
def test_options_that_must_not_change_the_training(tmp_path: Path, plain: Any, args: dict[str, Any]) -> None:
    other, _ = run(tmp_path, args=args, eval_dataset=mixture(8, seed=1))
    assert lines(tmp_path) == plain[0]
    for a, b in zip(plain[1], weights(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_embedding_noise_affects_training_but_not_selection(tmp_path: Path, plain: Any) -> None:
    noisy, _ = run(tmp_path, args={"neftune_noise_alpha": 5})
    assert lines(tmp_path)[0]["kept"] == plain[0][0]["kept"]  # the selection pass is in eval mode
    assert not same_weights(noisy, plain[1])
    reuse = SelectionConfig(reuse_forward=True)
    with pytest.raises(ConfigError, match="neftune_noise_alpha=5 adds noise .* set one to null or False"):
        run(tmp_path, selection=reuse, args={"neftune_noise_alpha": 5, "gradient_checkpointing": True})


@pytest.mark.parametrize(
    "args",
    [
        {"data_seed": 1},
        {"train_sampling_strategy": "sequential"},
        {"train_sampling_strategy": "group_by_length"},
    ],
    ids=str,
)
def test_options_that_order_the_rows_take_effect(tmp_path: Path, plain: Any, args: dict[str, Any]) -> None:
    run(tmp_path, args=args)
    assert [line["pool"] for line in lines(tmp_path)[:2]] != [line["pool"] for line in plain[0][:2]]
    assert [line["pool_count"] for line in lines(tmp_path)] == [12] * 6


@pytest.mark.parametrize(
    "args",
    [
        {"weight_decay": 0.5},
        {"max_grad_norm": 1e-3},
        {"optim": "sgd"},
        {"lr_scheduler_type": "constant"},
        {"warmup_steps": 2},
    ],
    ids=str,
)
def test_options_that_shape_the_steps_take_effect(tmp_path: Path, plain: Any, args: dict[str, Any]) -> None:
    other, _ = run(tmp_path, args=args)
    assert not same_weights(other, plain[1])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"accelerator_config": {"split_batches": True}}, "split_batches=True in accelerator_config"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 would be ignored"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size changes the pool"),
    ],
)
@pytest.mark.parametrize("loss", ["example", "token"])
def test_options_without_effect_are_refused(tmp_path: Path, args: dict[str, Any], message: str, loss: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        coreset_trainer(tmp_path, args=args, selection=SelectionConfig(loss=loss), train_dataset=mixture())


@pytest.mark.parametrize("lora", [False, True])
def test_bfloat16(tmp_path: Path, lora: bool) -> None:
    trainer, _ = run(
        tmp_path, model=tiny_model("llama", num_hidden_layers=2, lora=lora), args={"bf16": True, "max_steps": 20}
    )
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]
    assert all(line["nonfinite"] == 0 for line in lines(tmp_path))


@pytest.mark.parametrize("features", ["exact", "spsa", "gradient_norm", "mean_hidden", "loss"])
def test_float16_with_a_loss_scaler_in_your_own_loop(features: Any) -> None:
    model = tiny_model("llama", num_hidden_layers=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    selector = CoresetSelector(model, SelectionConfig(features=features), {"big": 90, "small": 10}, optimizer=optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # overflows at first, so that steps are skipped
    sources = ["big"] * 7 + ["small"]
    stepped = []
    for step in range(40):
        batch = ragged_batch([9, 7, 5, 8, 6, 4, 9, 5], seed=step)
        with torch.autocast("cpu", dtype=torch.float16):
            coreset = selector.select(batch, sources)
            (kept,) = selector.take(batch, coreset)
            labels = kept.pop("labels")
            loss = example_mean(model(**kept).logits, labels)
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        stepped.append(scaler.get_scale() >= scale)
        record = selector.commit(stepped=stepped[-1])
        assert record.nonfinite == 0
    assert stepped.count(False) > 3
    assert stepped.count(True) > 3
    assert selector.state_dict()["updates"] == (stepped.count(True) if features in ("exact", "spsa") else 0)


def test_the_best_model_is_loaded(tmp_path: Path) -> None:
    class Worse(TrainerCallback):
        """Lets every evaluation after the first look worse."""

        def on_evaluate(self, args: Any, state: Any, control: Any, *, metrics: dict[str, float], **kwargs: Any) -> None:
            metrics["eval_loss"] = float(state.global_step)

    saving = {"strategy": "steps", "steps": 2}
    trainer = coreset_trainer(
        tmp_path,
        args={f"{name}_{key}": value for name in ("save", "eval") for key, value in saving.items()}
        | {"load_best_model_at_end": True, "save_total_limit": 2, "metric_for_best_model": "loss"},
        eval_dataset=mixture(8, seed=1),
    )
    trainer.callback_handler.callbacks.insert(0, Worse())
    trainer.train()
    assert trainer.state.best_global_step == 2
    # The best is kept in addition to the last, as the Trainer's limit requires.
    assert sorted(folder.name for folder in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-6"]
    best = coreset_trainer(tmp_path / "again", args={"max_steps": 2, "lr_scheduler_type": "constant"})
    resumed = coreset_trainer(tmp_path, args={"max_steps": 2})
    resumed._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    assert same_weights(trainer, resumed)
    assert not same_weights(trainer, best)


def test_a_search_for_hyperparameters(tmp_path: Path) -> None:
    trainer = CoresetTrainer(
        model_init=lambda: tiny_model("llama", num_hidden_layers=2),
        args=arguments(tmp_path, max_steps=3, eval_strategy="steps", eval_steps=3),
        train_dataset=mixture(),
        eval_dataset=mixture(8, seed=1),
        data_collator=collate,
        selection=SelectionConfig(),
    )
    best = trainer.hyperparameter_search(
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-5, 3e-2, log=True)},
        n_trials=3,
        direction="minimize",
        backend="optuna",
    )
    assert 1e-5 < best.hyperparameters["learning_rate"] < 3e-2
    assert best.objective < 4.2
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2]  # of the last trial
    assert trainer.selector.state_dict()["step"] == 3


def test_a_search_may_not_make_the_pool_too_small(tmp_path: Path) -> None:
    trainer = coreset_trainer(tmp_path, selection=SelectionConfig(keep_count=6))
    trainer.args.gradient_accumulation_steps = 8  # as set by a trial
    with pytest.raises(ConfigError, match="keeps 6, fewer than its 8"):
        trainer.train()


def test_the_trainers_just_in_time_checkpoint_has_the_step_that_it_ends(tmp_path: Path) -> None:
    class Told(TrainerCallback):
        """Stands for the timer that runs after SIGTERM."""

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:  # in the third step
                trainer.callback_handler.callbacks[jit].jit_manager.is_checkpoint_requested = True

    whole = coreset_trainer(tmp_path / "whole")
    whole.train()
    trainer = coreset_trainer(tmp_path / "cut", args={"enable_jit_checkpoint": True}, callbacks=[Told()])
    names = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
    jit = names.index("JITCheckpointCallback")
    trainer.train()
    assert trainer.state.global_step == 3
    resumed = coreset_trainer(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert same_weights(whole, resumed)
