"""`colm sources --cluster`: labels for unlabeled data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from colm.errors import ConfigError
from colm.lab.cli.console import make_console
from colm.lab.run.disk import saying
from colm.lab.run.folder import RunFolder
from colm.lab.run.prepare import read_rows_of
from colm.lab.run.settings import load_settings, resolve_settings
from colm.lab.sources.centroids import Tried, find_elbow
from colm.lab.sources.rows import Rows
from colm.lab.sources.words import count_words, distinguishing_words
from colm.step.sources import find_small_sources

READ = 20_000
"""Number of rows, from the start, whose words are counted."""
BAR = 20

MUCH = 0.4
"""If small clusters hold more than this share of rows, half a pool leaves little room for large ones."""


def cluster_command(data: str, config: str | None, overrides: Sequence[str], out: str | None) -> None:
    """Cluster a data set, write each row's label to a file, and print the clusters.

    Args:
        data: a file, a hub name, or ``demo``.
        config: a run's configuration, for `sources.cluster`, model and columns; None for the defaults.
        overrides: overrides of its settings: ``sources.cluster.clusters=16``.
        out: Parquet file for the labels; default ``labels.parquet``.

    Raises:
        ConfigError: a setting is wrong, or the file was made with other settings.
        DataError: see `cluster.labelling`.
    """
    labels = out or "labels.parquet"
    RunFolder(Path(labels).parent).prepare()
    fixed = [f"data.train={data}", f"sources.labels={labels}", "mixture=[]", "sources.map={}", "sources.split={}"]
    fixed += ["sources.merge_below=0", "data.validation=null", "data.validation_rows=0", "data.cap=null"]
    fixed += ["data.weights={}", "data.temperature=null"]  # every row gets a label, in the order of the data
    if config is None:
        base = {"model": "none", "output_dir": "none", "sources": {"cluster": {}}}
        settings = resolve_settings(base, [*overrides, *fixed])
    else:
        settings = load_settings(config, [*overrides, *fixed])
        if settings.sources.cluster is None:
            settings = load_settings(config, ["sources.cluster={}", *overrides, *fixed])
    if (
        settings.sources.cluster is not None
        and settings.sources.cluster.embedding == "model"
        and settings.model == "none"
    ):
        raise ConfigError("embedding=model needs a model: give model=NAME, or a configuration that names it.")
    with saying(Path(labels).parent, "Free some space there, then run the same command again, which resumes."):
        rows, labelling = read_rows_of(settings)
    assert labelling is not None
    console = make_console()
    if labelling.tried:
        console.print(curve_table(labelling.tried))
    console.print(_table(Rows(rows.train, settings.data.format), labelling.names))
    share = share_in_small(labelling.names)
    if share > MUCH:
        console.print(
            f"Clusters below the uniform share hold {share:.0%} of the rows. Unless selection.keep is well above "
            "that, they fill the coreset, and large clusters are hardly trained on: choose another number of "
            "clusters. colm sources CONFIG shows what a coreset will contain.",
            style="bold",
            markup=False,
        )
    new = f", {labelling.new:,} of them by the nearest centroid" if labelling.new else ""
    print(
        f"{len(labelling.names):,} rows labelled{new}. Written to {labels}; use it with sources.labels={Path(labels)}."
    )


def share_in_small(names: Sequence[str]) -> float:
    """Return the share of rows in clusters below the uniform share, which the small-source rule keeps whole.

    >>> share_in_small(["a"] * 6 + ["b", "b", "c"])
    0.3333333333333333
    """
    counts = Counter(names)
    return sum(counts[name] for name in find_small_sources(counts, "auto")) / len(names)


def curve_table(tried: Sequence[Tried]) -> Table:
    """Return a table of the numbers of clusters tried, with the criterion as a bar."""
    chosen = find_elbow(tried)
    table = Table(title=f"{chosen} clusters: the elbow of the mean squared distance")
    for name in ("clusters", "mean squared distance", "silhouette"):
        table.add_column(name, justify="right")
    table.add_column("")
    top = max(one.inertia for one in tried)
    for one in tried:
        bar = "#" * round(BAR * one.inertia / top) if top > 0 else ""
        bar += " chosen" if one.clusters == chosen else ""
        table.add_row(f"{one.clusters}", f"{one.inertia:.3f}", f"{one.silhouette:.3f}", bar)
    return table


def _table(rows: Rows, names: Sequence[str]) -> Table:
    counts = Counter(names)
    texts: dict[str, list[str]] = {}
    for name, row in zip(names, rows.read(0, READ), strict=False):
        texts.setdefault(name, []).append(row.text)
    words = distinguishing_words({name: count_words(held) for name, held in texts.items()})
    small = find_small_sources(counts, "auto")
    share = len(names) / len(counts)
    table = Table(title=f"{len(counts)} clusters of {len(names):,} rows; uniform share {share:,.0f}")
    table.add_column("cluster", overflow="fold")
    table.add_column("size")
    for column in ("rows", "share"):
        table.add_column(column, justify="right")
    options: dict[str, Any] = {"overflow": "fold"}
    table.add_column("words", **options)
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        size = "small" if name in small else "big"
        table.add_row(name, size, f"{count:,}", f"{count / len(names):.1%}", ", ".join(words.get(name, [])) or "none")
    return table
