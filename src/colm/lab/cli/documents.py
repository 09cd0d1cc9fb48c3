"""What the commands print with ``--json``."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colm.lab.report.runs import Run
    from colm.lab.sources.mixture import Survey


def to_json(document: Any, encoding: str | None = None) -> str:
    """Return a document as JSON. Records become mappings; numbers that are not finite become null.

    JSON is read as UTF-8: in a text of another encoding, all that is not ASCII is escaped.

    >>> print(to_json({"loss": float("nan"), "page": Path("a.html")}))
    {
      "loss": null,
      "page": "a.html"
    }
    """
    escaped = codecs.lookup(encoding or "utf-8").name != "utf-8"
    return json.dumps(_plain(document), indent=2, ensure_ascii=escaped, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): _plain(held) for key, held in value.items()}
    return [_plain(held) for held in value] if isinstance(value, list | tuple) else value


def list_survey(survey: Survey, page: Path, note: str) -> dict[str, Any]:
    """Return the facts of `colm sources`; lengths in tokens, shares and probabilities from 0 to 1."""
    outlook = survey.outlook
    return {
        "pool": outlook.pool,
        "keep": outlook.keep,
        "small_rows_in_pool": outlook.small_rows,
        "overflow": outlook.overflow,
        "sources": {
            source.name: {
                **source.outlook._asdict(),
                **{key: getattr(source, key) for key in ("tokens", "mean_length", "long_length", "duplicates")},
                **{key: getattr(source, key) for key in ("words", "why")},
            }
            for source in survey.sources
        },
        "dropped": survey.dropped,
        "warnings": survey.warnings,
        "note": note,
        "page": page,
    }


def list_clusters(names: Sequence[str], new: int, labels: str) -> dict[str, Any]:
    """Return the facts of `colm sources --cluster`: the rows of each cluster, the largest first."""
    from colm.step.sources import find_small_sources

    counts = Counter(names)
    small = find_small_sources(counts, "auto")
    return {
        "rows": len(names),
        "assigned_to_nearest": new,
        "clusters": {name: {"rows": rows, "small": name in small} for name, rows in counts.most_common()},
        "labels": labels,
    }


def list_comparison(folder: Path, page: Path) -> dict[str, Any]:
    """Return the results of a comparison, as in `compare.json`, and what they show."""
    from colm.lab.report.comparison import read_comparison
    from colm.lab.report.conclusion import conclude
    from colm.lab.run.folder import RunFolder
    from colm.step.record import COMPARE_NAME

    return {
        "methods": RunFolder(folder).read(COMPARE_NAME),
        **conclude(read_comparison(folder))._asdict(),
        "page": page,
    }


def list_runs(runs: Sequence[Run], page: Path) -> dict[str, Any]:
    """Return the facts of `colm report`: each run's sources, and its verdicts, problems first."""
    from colm.lab.report.checks import check_run
    from colm.lab.report.measures import tabulate_sources

    others = runs if len(runs) > 1 else ()
    return {
        "runs": {
            run.name: {
                "steps": run.steps[-1].number,
                "finished": run.finished,
                "sources": tabulate_sources(run),
                "noise": _list_noise(run),
                "verdicts": check_run(run, others),
            }
            for run in runs
        },
        "page": page,
    }


def _list_noise(run: Run) -> dict[str, Any] | None:
    """Return the noise scale at the end, in rows, and what it means; None for a run without a measurement."""
    from colm.lab.report.measures import last_noise
    from colm.lab.report.run_page import describe_noise

    noise = last_noise(run)
    return None if noise is None else noise._asdict() | {"meaning": describe_noise(run)}
