"""CoresetTrainer in Ray Train, here on two CPU workers: python examples/ray_train.py --workers 2"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train_worker(options: dict[str, Any]) -> None:
    """Train on one worker; Ray Train has connected the workers."""
    from transformers import DataCollatorForSeq2Seq, TrainingArguments, set_seed

    from colm import CoresetTrainer, SelectionConfig
    from colm.lab.data.demo import demo_rows
    from colm.lab.data.formats import Rendering
    from colm.lab.data.tokenize import tokenize_rows
    from colm.models import build_tiny_model, train_tiny_tokenizer
    from colm.trainers.checkpoints import last_complete_checkpoint

    text = demo_rows(600, seed=0)  # your data: any rows with a source
    tokenizer = train_tiny_tokenizer(text["prompt"])
    data = tokenize_rows([text], tokenizer, format_name="auto", rendering=Rendering(192), source_column="source")
    out = Path(options["out"])  # on a file system that all workers share
    set_seed(0)
    trainer = CoresetTrainer(
        model=build_tiny_model(tokenizer),  # your model
        args=TrainingArguments(
            str(out),
            per_device_train_batch_size=4,
            gradient_accumulation_steps=8 // options["workers"],  # pools of 32 rows on any number of workers
            max_steps=options["steps"],
            learning_rate=2e-3,
            logging_steps=1,
            save_steps=2,
            use_cpu=not options["gpu"],
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True, label_pad_token_id=-100),
        selection=SelectionConfig(keep=0.5),
    )
    # A worker that Ray restarts after a failure resumes from the last complete checkpoint.
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(out) is not None)
    if trainer.is_world_process_zero():
        for log in trainer.state.log_history:
            if "loss" in log:
                print(f"step {log['step']}: loss {log['loss']:.4f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true", help="give each worker a GPU")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("runs/ray_train"))
    options = parser.parse_args()
    TorchTrainer(
        train_worker,
        train_loop_config={**vars(options), "out": str(options.out.resolve())},
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=3)),
    ).fit()
