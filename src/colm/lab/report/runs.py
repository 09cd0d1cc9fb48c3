"""Read a run's folder as records: selection, evaluations and settings written by `colm train`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from colm.errors import ConfigError, DataError
from colm.lab.run.folder import RunFolder
from colm.step.record import EVALUATIONS_NAME, EXAMPLES_NAME, FILE_NAME, LOSSES_NAME, SUMMARY_NAME, StepLog, from_dict
from colm.step.sources import find_small_sources
from colm.types import NoiseScale

T = TypeVar("T")


class Step(NamedTuple):
    """One optimizer step's record, with its rows counted: a page needs no rows, and those of a long run are many."""

    number: int  # number of the optimizer step, from 1
    pool_count: int
    kept_count: int
    small_kept: int
    unlabelled: int
    nonfinite: int
    seconds: float  # of the selection
    step_seconds: float | None  # of the whole step
    match: float | None  # cosine of the kept big rows' mean feature with the pool's
    match_random: float | None  # the same, expected value for as many random rows
    pool: dict[str, int]  # source -> rows
    kept: dict[str, int]  # source -> rows
    noise: NoiseScale | None = None  # after a measurement in this step


class Evaluation(NamedTuple):
    """The evaluation losses at one step of a run."""

    step: int  # optimizer steps done
    rows: int | None  # training examples so far
    seconds: float | None  # of training so far, including selection
    losses: dict[str, float]  # source -> mean loss


class TrainingLoss(NamedTuple):
    """The mean loss of the rows trained on since the line before, as the Trainer logs it."""

    step: int  # optimizer steps done
    loss: float


class Example(NamedTuple):
    """A training example, with how often it was seen and kept."""

    source: str
    row: int  # index in the training data
    pooled: int
    kept: int
    text: str


class Summary(NamedTuple):
    """Facts that only a finished run has."""

    steps: int
    seconds: float
    selection_seconds: float
    peak_memory: int | None  # bytes
    memory_kind: str  # "device" or "process"; empty if not recorded
    rows: dict[str, int]  # source -> training rows, of sources with any
    small: frozenset[str]
    before: dict[str, float]  # source -> evaluation loss
    after: dict[str, float]
    dropped: dict[str, int]  # source -> rows without a labeled token, of sources with any


class Run(NamedTuple):
    """The content of a run's folder."""

    name: str
    config: dict[str, Any]
    steps: list[Step]
    evaluations: list[Evaluation]
    losses: list[TrainingLoss]  # empty for runs of older versions
    most_kept: list[Example]
    least_kept: list[Example]
    summary: Summary | None  # None while the first training is running or was interrupted
    finished: bool  # the summary is from the last step; a resumed run has an old summary until it ends
    pooled: dict[str, int]  # source -> rows seen in pools so far
    kept: dict[str, int]  # source -> rows trained on so far
    rows: dict[str, int]  # source -> training rows; without a summary, as `pooled`
    trained: frozenset[str]  # sources of the training data; without a summary, all seen or evaluated
    small: frozenset[str]  # small sources; without a summary, based on the rows seen so far
    sources: list[str]  # of training or evaluation, the largest first

    @property
    def selection(self) -> dict[str, Any]:
        """The selection section of the configuration."""
        return dict(self.config.get("selection") or {})


def read_run(folder: Path, name: str | None = None) -> Run:
    """Read a run's folder, finished or not.

    A partial last line is ignored. Files that older runs lack are optional, except for the selection log.

    Args:
        folder: the run's `output_dir`.
        name: name of the run (default: the folder's name).

    Raises:
        ConfigError: the folder does not exist, or contains no run or a run without steps; or a file cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"There is no folder {str(folder)!r}; give the output_dir of a run.")
    config = RunFolder(folder).config()
    if not (folder / FILE_NAME).exists():
        missing = "has no step yet" if config else "contains no run"
        raise ConfigError(f"{folder} {missing}: there is no {FILE_NAME}. Give the output_dir of a run of colm train.")
    steps = _read_lines(folder / FILE_NAME, _parse_step)
    if not steps:
        raise ConfigError(f"{folder / FILE_NAME} is empty so far; wait for the first training step.")
    summary = read_summary(folder)
    most, least = _read_examples(folder)
    evaluations = read_evaluations(folder) or (_evaluations_of(summary) if summary else [])
    pooled = _add_up(step.pool for step in steps)
    rows = summary.rows if summary else pooled
    names = {*rows, *pooled, *(name for evaluation in evaluations for name in evaluation.losses)}
    return Run(
        name=name or folder.resolve().name,
        config=config,
        steps=steps,
        evaluations=evaluations,
        losses=_read_lines(folder / LOSSES_NAME, _parse_loss),
        most_kept=most,
        least_kept=least,
        summary=summary,
        finished=summary is not None and summary.steps == steps[-1].number,
        pooled=pooled,
        kept=_add_up(step.kept for step in steps),
        rows=rows,
        trained=frozenset(summary.rows if summary else names),
        small=summary.small if summary else _find_small(rows, (config.get("selection") or {}).get("small_sources")),
        sources=sorted(names, key=lambda name: (-rows.get(name, 0), name)),
    )


def name_folders(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: the fewest trailing parts of its path that distinguish it.

    ``seed-0`` alone is not informative, so the parent folder, of the method, is included.

    Raises:
        ConfigError: a folder is given twice.

    >>> name_folders([Path("out/colm/seed-0"), Path("out/control/seed-0")])
    ['colm/seed-0', 'control/seed-0']
    >>> name_folders([Path("out/colm/seed-0")]), name_folders([Path("runs/mine")])
    (['colm/seed-0'], ['mine'])
    """
    paths = [folder.resolve().parts for folder in folders]
    for path, folder in zip(paths, folders, strict=True):
        if paths.count(path) > 1:
            raise ConfigError(f"{folder} is given twice; give each run once.")
    fewest = 2 if any(path[-1].startswith("seed-") for path in paths if path) else 1
    for taken in range(fewest, max(map(len, paths)) + 1):
        names = ["/".join(path[-taken:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def read_summary(folder: Path) -> Summary | None:
    """Read `summary.json`, or return None if the run has not finished. Raises as `read_run`."""
    values = RunFolder(folder).read(SUMMARY_NAME)
    return None if values is None else _parse(folder / SUMMARY_NAME, _parse_summary, values)


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Read `evaluations.jsonl`; empty if the file is missing. Raises as `read_run`."""
    return _read_lines(folder / EVALUATIONS_NAME, _parse_evaluation)


def _read_lines(path: Path, parse: Callable[[Any], T]) -> list[T]:
    found: list[T] = []
    try:
        for line in StepLog(path).read():
            found.append(_parse(f"{path}, line {len(found) + 1},", parse, line))
    except DataError as error:
        raise ConfigError(str(error)) from error
    return found


def _parse(place: object, parse: Callable[[Any], T], values: Any) -> T:
    try:
        return parse(values)
    except KeyError as error:
        raise ConfigError(f"{place} lacks {error}; it was not written by this version of colm train.") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{place} does not have the format that colm train writes: {error}") from error


def _parse_step(line: dict[str, Any]) -> Step:
    record = from_dict(line)
    return Step(
        number=record.step + 1,
        pool_count=record.pool_count,
        kept_count=record.kept_count,
        pool={source: len(rows) for source, rows in record.pool.items()},
        kept={source: len(rows) for source, rows in record.kept.items()},
        **{
            name: getattr(record, name)
            for name in (
                *("small_kept", "unlabelled", "nonfinite", "seconds", "step_seconds", "match", "match_random", "noise"),
            )
        },
    )


def _parse_evaluation(line: dict[str, Any]) -> Evaluation:
    rows, seconds = line.get("rows"), line.get("seconds")
    return Evaluation(
        step=int(line["step"]),
        rows=None if rows is None else int(rows),
        seconds=None if seconds is None else float(seconds),
        losses={name: float(loss) for name, loss in line["losses"].items()},
    )


def _parse_loss(line: dict[str, Any]) -> TrainingLoss:
    return TrainingLoss(int(line["step"]), float(line["loss"]))


def _parse_summary(values: dict[str, Any]) -> Summary:
    sources: dict[str, Any] = values["sources"]
    rows = {name: int(source["rows"]) for name, source in sources.items() if source["rows"]}
    small = values.get("small_sources")

    def losses(key: str) -> dict[str, float]:
        return {name: float(source[key]) for name, source in sources.items() if source.get(key) is not None}

    memory = values.get("peak_memory_bytes")
    return Summary(
        steps=int(values["steps"]),
        seconds=float(values["seconds"]),
        selection_seconds=float(values["selection_seconds"]),
        peak_memory=None if memory is None else int(memory),
        memory_kind=str(values.get("memory_kind") or ""),
        rows=rows,
        small=_find_small(rows) if small is None else frozenset(small),
        before=losses("eval_loss_before"),
        after=losses("eval_loss_after"),
        dropped={name: int(source["dropped"]) for name, source in sources.items() if source.get("dropped")},
    )


def _evaluations_of(summary: Summary) -> list[Evaluation]:
    """Build the two evaluations in the summary, for runs without an evaluation log."""
    last = Evaluation(summary.steps, None, summary.seconds, summary.after)
    return [each for each in (Evaluation(0, 0, 0.0, summary.before), last) if each.losses]


def _read_examples(folder: Path) -> tuple[list[Example], list[Example]]:
    held = RunFolder(folder).read(EXAMPLES_NAME)
    if held is None:
        return [], []

    def parse(values: dict[str, Any]) -> list[list[Example]]:
        return [[_parse_example(each) for each in values[key]] for key in ("most_kept", "least_kept")]

    most, least = _parse(folder / EXAMPLES_NAME, parse, held)
    return most, least


def _parse_example(values: dict[str, Any]) -> Example:
    return Example(
        source=str(values["source"]),
        row=int(values["index"]),
        pooled=int(values["pooled"]),
        kept=int(values["kept"]),
        text=str(values["text"]),
    )


def _add_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(+total)  # without sources that only have empty lists


def _find_small(rows: Mapping[str, int], rule: Any = "auto") -> frozenset[str]:
    """Return the small sources by the selector's rule; those that a run lists may not have been in a pool yet."""
    if isinstance(rule, list):
        return frozenset(rule)
    return find_small_sources(rows, "none" if rule == "none" or not rows else "auto")
