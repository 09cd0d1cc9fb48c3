"""Uploads a run to the Hub: the model, its tokenizer and its card, and no other file of its folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from transformers import TrainerCallback
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from colm.errors import ConfigError, one_line
from colm.trainers.evaluation import SourceTrainer

MODEL_PATTERNS = [
    *("*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer*", "*.jinja", "*.model"),
    *("vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
]
"""The files of a checkpoint that make up the model and its tokenizer. `training_args.bin` may hold an access token."""


class HubTrainer(SourceTrainer):
    """A `SourceTrainer` that leaves uploads to `UploadCheckpoints` and `upload_run`.

    The Trainer uploads the whole output folder, in which a run also has rows of its data, and writes its own card.
    """

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload nothing: the checkpoint is not complete yet."""


class UploadCheckpoints(TrainerCallback):
    """Uploads each complete checkpoint as `training.hub_strategy` says, in the background."""

    def __init__(self, trainer: HubTrainer) -> None:
        self._trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the upload, unless the last one is still under way."""
        trainer, strategy = self._trainer, args.hub_strategy
        if not args.push_to_hub or not state.is_world_process_zero or strategy == HubStrategy.END:
            return
        busy = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
        if busy and not args.hub_always_push:
            return
        trainer.callback_handler.on_push_begin(args, state, trainer.control)
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        message = f"Training in progress, step {state.global_step}"
        jobs = [_upload(trainer, folder, message, allow_patterns=MODEL_PATTERNS, run_as_future=True)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else folder.name
            jobs.append(_upload(trainer, folder, f"{message}, checkpoint", path_in_repo=place, run_as_future=True))
        if busy:
            trainer.push_in_progress.jobs.extend(jobs)
        else:
            trainer.push_in_progress = PushInProgress(jobs)


def upload_run(trainer: HubTrainer, names: Collection[str]) -> None:
    """Upload the files of a finished run, in the process that writes them.

    Args:
        trainer: the trainer.
        names: the files of the model and the tokenizer, and the card.

    Raises:
        ConfigError: the upload failed.
    """
    trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)
    folder, shown = Path(trainer.args.output_dir), sorted(set(names).difference(["training_args.bin"]))
    try:
        _upload(trainer, folder, "Model save", allow_patterns=shown)
    except (OSError, HfHubHTTPError) as error:
        raise ConfigError(
            f"The run in {folder} is complete, but it could not be uploaded to {trainer.hub_model_id} "
            f"({one_line(error)}). Repeat the upload with --resume."
        ) from error


def _upload(trainer: HubTrainer, folder: Path, message: str, **options: Any) -> Any:
    args = trainer.args
    return HfApi().upload_folder(
        repo_id=str(trainer.hub_model_id),
        folder_path=folder,
        commit_message=message,
        token=args.hub_token,
        revision=args.hub_revision,
        **options,
    )
