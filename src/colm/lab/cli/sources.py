"""`colm sources`: a mixture before training; ``--cluster`` and ``--assign``: sources for unlabeled data."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from colm.errors import ConfigError
from colm.lab.cli.arguments import Commands, add_config, add_json, require_one_process
from colm.lab.cli.console import make_console
from colm.lab.cli.documents import list_clusters, list_survey
from colm.lab.sources.wanted import WHOLE, Part

PAGE_NAME = "sources.html"

MUCH = 0.4
"""If small clusters hold more than this share of rows, half a pool leaves little room for large ones."""


def register(commands: Commands) -> None:
    """Add the command to the parser."""
    command = add_config(commands, "sources", "show the mixture before training", nargs="?")
    add = command.add_argument
    add(
        "--out",
        metavar="FILE",
        help="output file (default: sources.html in the output folder); see --cluster, --assign",
    )
    add(
        "--cluster",
        metavar="DATA",
        help="cluster this file or hub data set instead, and write the labels to --out LABELS.parquet",
    )
    add(
        "--assign",
        metavar="DATA",
        help="write the rows of these files with their sources, by the clusters of --centroids, to --out: a file, a "
        "folder, or a pattern in quotes, of .parquet or .jsonl",
    )
    add("--centroids", metavar="FILE.npz", help="with --assign: clusters that --cluster wrote next to its labels")
    add("--shard", metavar="i/n", help="with --assign: only part i of n, from 0; written to FILE-i-of-n next to --out")
    add("--overwrite", action="store_true", help="with --assign: replace the output file")
    add_json(command, "facts of each source, the expected pool and coreset, and the warnings; or the clusters")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Show the mixture, cluster a data set, or assign the clusters to the rows of files."""
    if args.assign:
        if args.cluster or not args.centroids or not args.out:
            args.parser.error("colm sources --assign DATA needs --centroids and --out, and takes no --cluster")
        part = WHOLE if args.shard is None else Part.read(args.shard)
        out = Path(args.out)
        return assign(args.assign, args.centroids, args.config, args.overrides, out, part, overwrite=args.overwrite)
    if args.centroids or args.shard or args.overwrite:
        args.parser.error("--centroids, --shard and --overwrite of colm sources are for --assign DATA")
    if args.cluster:
        return cluster(args.cluster, args.config, args.overrides, args.out, show=not args.json)
    if not args.config:
        args.parser.error("colm sources needs CONFIG.yaml, or --cluster DATA")
    return survey_sources(args.config, args.overrides, args.out, show=not args.json)


def survey_sources(
    config: str, overrides: Sequence[str], out: str | None = None, *, show: bool = True
) -> dict[str, Any]:
    """Print the mixture's sources, write them to a page, and return them, see `list_survey`.

    Args:
        config: the run's configuration.
        overrides: overrides of its settings.
        out: the HTML file; by default `sources.html` in the output folder.
        show: False to print nothing.
    """
    from colm.lab.run.settings import load_settings

    settings = load_settings(config, overrides)
    from colm.lab.cli.source_tables import curve_table, pool_table, sizes_table, words_table
    from colm.lab.report.page import check_page
    from colm.lab.report.sources_page import write_sources_page
    from colm.lab.run.folder import RunFolder
    from colm.lab.run.prepare import prepare_data
    from colm.lab.sources.mixture import survey_mixture

    page = Path(out) if out else settings.output_dir / PAGE_NAME
    if not out:
        RunFolder(settings.output_dir).prepare()
    check_page(page)
    data = prepare_data(settings)
    slots = settings.arguments["gradient_accumulation_steps"]  # of one process
    pool_rows = settings.arguments["per_device_train_batch_size"] * slots
    settings.selection.check_pool(pool_rows, slots)
    given = settings.data.source_sizes
    survey = survey_mixture(
        data.train if data.window is None else data.window,
        data.tokenizer,
        settings.selection,
        source_column=settings.data.source_column,
        pool_rows=pool_rows,
        slots=slots,
        sizes=given or None,
        counts=data.counts,
        seed=settings.seed,
    )
    note = ""
    if data.window is not None:
        note = f"Read from the stream's first {len(data.window):,} rows" + ("." if given else ", including sizes.")
    console = make_console(quiet=not show)
    tried = data.labelling.tried if data.labelling is not None else []
    if tried:
        console.print(curve_table(tried))
    for table in (sizes_table(survey), pool_table(survey.outlook), words_table(survey)):
        console.print(table)
    for name, told in survey.dropped.items():
        console.print(f"{name}: {told}", markup=False)
    for warning in survey.warnings:
        console.print(f"{warning.title}: {warning.reason} {warning.advice}", style="bold", markup=False)
    if note:
        console.print(note)
    write_sources_page(survey, page, name=Path(config).stem, note=note, tried=tried)
    console.print(f"Written to {page}, with examples.", highlight=False, soft_wrap=True)
    return list_survey(survey, page, note)


def cluster(
    data: str, config: str | None, overrides: Sequence[str], out: str | None, *, show: bool = True
) -> dict[str, Any]:
    """Cluster a data set, write each row's label to a file, print the clusters, and return them, see `list_clusters`.

    Args:
        data: a file, a hub name, or ``demo``.
        config: a run's configuration, for `sources.cluster`, model and columns; None for the defaults.
        overrides: overrides of its settings: ``sources.cluster.clusters=16``.
        out: Parquet file for the labels; default ``labels.parquet``.
        show: False to print nothing.

    Raises:
        ConfigError: a setting is wrong, or the file was made with other settings.
        DataError: see `cluster.labelling`.
    """
    from colm.lab.cli.source_tables import clusters_table, curve_table, share_in_small
    from colm.lab.run.disk import saying
    from colm.lab.run.folder import RunFolder
    from colm.lab.run.prepare import read_rows_of
    from colm.lab.run.settings import load_settings, resolve_settings
    from colm.lab.sources.rows import Rows

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
    console = make_console(quiet=not show)
    if labelling.tried:
        console.print(curve_table(labelling.tried))
    console.print(clusters_table(Rows(rows.train, settings.data.format), labelling.names))
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
    console.print(
        f"{len(labelling.names):,} rows labelled{new}. Written to {labels}; use it with sources.labels={Path(labels)}.",
        highlight=False,
        soft_wrap=True,
    )
    return list_clusters(labelling.names, labelling.new, labels)


def assign(
    data: str,
    centroids: str,
    config: str | None,
    overrides: Sequence[str],
    out: Path,
    part: Part = WHOLE,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the rows of one part of data files with their sources, and return what was written.

    Args:
        data: a file, a folder, or a pattern, see `shards.find_files`.
        centroids: file of the clusters.
        config: a run's configuration, for `data.columns`, `data.format` and `data.source_column`; None for defaults.
        overrides: overrides of its settings.
        out: the file to write, or its name without the number of the part.
        part: of the files.
        overwrite: replace a file that has been written.

    Raises:
        ConfigError: a setting is wrong or has no effect here; see also `write_shard`.
        DataError: see `write_shard`.
    """
    require_one_process("colm sources --assign", "start it without a launcher, and divide the files with --shard i/n")
    from colm.lab.run.settings import load_settings, resolve_settings

    fixed = [f"data.train={data}", "mixture=[]", "sources={}"]
    if config is None:
        settings = resolve_settings({"model": "none", "output_dir": "none"}, [*overrides, *fixed])
    else:
        settings = load_settings(config, [*overrides, *fixed])
    given = settings.data
    if given.template:
        raise ConfigError("colm sources --assign does not fill data.template; write its columns to the files first.")
    from colm.lab.run.disk import saying
    from colm.lab.run.folder import RunFolder
    from colm.lab.sources.assign import AssignSources
    from colm.lab.sources.shards import write_shard

    assigner = AssignSources(centroids, given.source_column, given.columns, given.format)
    RunFolder(out.parent).prepare()
    with saying(out.parent, "Free some space there, or choose another --out."):
        shard = write_shard(assigner, data, out, part=part, overwrite=overwrite)
    print(f"{shard.rows:,} rows. {'Written to' if shard.new else 'They were already in'} {shard.path}.")
    for name, rows in shard.sources.items():
        print(f"  {name}  {rows:,}")
    return shard._asdict()
