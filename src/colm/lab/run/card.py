"""The model card of a finished run: `README.md` with metadata, data, losses, settings and citations."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from colm import __version__
from colm.config import SelectionConfig
from colm.lab.run.folder import CARD_NAME, RunFolder
from colm.lab.run.settings import RunSettings
from colm.lab.run.yaml12 import write_yaml

logger = logging.getLogger(__name__)

CITATIONS = """```bibtex
@inproceedings{nguyen2025colm,
  title     = {Mini-batch Coresets for Memory-efficient Language Model Training on Data Mixtures},
  author    = {Nguyen, Dang and Yang, Wenhan and Anand, Rathul and Yang, Yu and Mirzasoleiman, Baharan},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  url       = {https://arxiv.org/abs/2407.19580}
}

@software{colm,
  title   = {colm: memory-efficient fine-tuning of causal language models on data mixtures by mini-batch coresets},
  author  = {{The colm authors}},
  version = {VERSION}
}
```"""


def write_card(settings: RunSettings, model: Any, summary: Mapping[str, Any], folder: RunFolder) -> None:
    """Write the card, unless the folder has a page that colm did not write.

    Args:
        settings: the run's settings.
        model: the trained model, for its base and tags.
        summary: the content of `summary.json`.
        folder: the run's folder.
    """
    path = folder.path / CARD_NAME
    if path.exists() and CARD_NAME not in folder.own():
        logger.info("%s stays as it is: colm did not write it, or it was changed since.", path)
        return
    folder.write(CARD_NAME, str(make_card(settings, model, summary)))


def make_card(settings: RunSettings, model: Any, summary: Mapping[str, Any]) -> ModelCard:
    """Return the card; it has no local paths and no access tokens."""
    adapter = hasattr(model, "peft_config")
    base = _hub_name(getattr(model.config, "_name_or_path", ""))
    data = ModelCardData(
        base_model=base,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=sorted({"colm", "coreset", "generated_from_trainer", *(getattr(model, "model_tags", None) or ())}),
    )
    name = settings.output_dir.absolute().name
    start = f"[{base}](https://huggingface.co/{base})" if base else "a local model"
    what = "An adapter for" if adapter else "A fine-tuned version of"
    method = (
        f"{what} {start}, trained for {summary['steps']:,} steps by colm {__version__} on coresets: of each pool of "
    )
    chosen = "random" if settings.selection.features == "none" else "representative"
    method += f"rows it kept those of small sources and {chosen} ones of the others."
    packages = ("transformers", "torch", "datasets", *(("peft",) if adapter else ()))
    sections = {
        f"# {name}": method,
        "## Data and losses": _source_table(summary),
        "## Settings": f"```yaml\n{write_yaml(_shown_settings(settings))}```",
        "## Versions": ", ".join(f"{package} {version(package)}" for package in packages),
        "## Citation": CITATIONS.replace("VERSION", __version__),
    }
    body = "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items())
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _hub_name(name: str) -> str | None:
    """Return the name of a model if it can be one on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name if name and not Path(name).exists() else None


def _source_table(summary: Mapping[str, Any]) -> str:
    def loss(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    rows = [
        (name, source["rows"], source["kept"], source["eval_loss_before"], source["eval_loss_after"])
        for name, source in sorted(summary["sources"].items(), key=lambda item: -item[1]["rows"])
    ]
    whole = [sum(row[place] for row in rows) for place in (1, 2)]
    rows.append(("all", *whole, summary["eval_loss_before"], summary["eval_loss_after"]))
    lines = [
        f"| {_cell(name)} | {count:,} | {kept:,} | {loss(before)} | {loss(after)} |"
        for name, count, kept, before, after in rows
    ]
    head = ["| source | rows | rows trained on | loss before | loss after |", "| --- | ---: | ---: | ---: | ---: |"]
    note = "Rows trained on count repeats; losses are means over held-out rows."
    return "\n".join([*head, *lines, "", note])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def _shown_settings(settings: RunSettings) -> dict[str, Any]:
    """Return the settings that shape the training; of `selection`, those that are not the defaults."""
    selection, plain = settings.selection.to_dict(), SelectionConfig().to_dict()
    shown: dict[str, Any] = {
        "seed": settings.seed,
        "dtype": settings.dtype,
        "data": {"max_length": settings.data.max_length},
        "selection": {key: value for key, value in selection.items() if key == "keep" or value != plain[key]},
        "training": {name: value for name, value in settings.training.items() if _is_shown(name, value)},
    }
    return shown | ({"lora": settings.lora} if settings.lora else {})


def _is_shown(name: str, value: Any) -> bool:
    outside = name.endswith(("_token", "_dir")) or name.startswith(("hub_", "push_to_hub", "report_to", "logging_"))
    return value is not None and not outside
