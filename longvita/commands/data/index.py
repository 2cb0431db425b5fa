"""`longvita data index`: index every data file of a config, and print the figures of each source."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longvita.commands.support.options import AllowMissing, ConfigFile, JSONOption, Overrides, with_missing
from longvita.processes import EXIT_COMPLETE, EXIT_INCOMPLETE, current_place

if TYPE_CHECKING:
    from rich.table import Table

    from longvita.config.schema import Config
    from longvita.data.index.store import Share
    from longvita.data.mix.catalog import CatalogFile
    from longvita.data.mix.missing_files import Missing
    from longvita.data.report.index_figures import SourceIndex

MAX_SHOWN = 10
"""Files that are named because they have no usable sample, and files whose first quarantined sample is printed."""
MAX_READ_RATIO = 10
"""Largest read_ratio of a source for which no other format is proposed."""


def index(
    config: ConfigFile,
    overrides: Overrides = None,
    processes: Annotated[int | None, typer.Option(min=0, help="Processes; data.index_processes when absent.")] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Index share K of N alone; under srun or torchrun, each task one."),
    ] = None,
    allow_missing: AllowMissing = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Delete existing indexes first, and read all media headers again.")
    ] = False,
    as_json: JSONOption = False,
) -> int:
    """Index the data files of a config that have no index yet, and print the figures of each source."""
    from longvita.commands.support.config_file import load_config
    from longvita.data.mix.catalog import index_mixes

    own = [] if processes is None else [f"data.index_processes={processes}"]
    share = share_of(part)
    loaded = load_config(config, [*with_missing(overrides, allow_missing), *own])
    if share.count == 1:
        return index_all(loaded, as_json, rebuild, shlex.join([str(config), *(overrides or [])]))
    if rebuild or as_json:
        option = "--rebuild" if rebuild else "--json"
        raise typer.BadParameter(f"goes with one process that indexes everything, not {share.count}", param_hint=option)
    ending = "every data file has its index" if index_mixes(loaded, share) else "the last task joins the parts"
    print(f"share {share.number + 1} of {share.count} is indexed; {ending}")
    return EXIT_COMPLETE


def share_of(part: str | None) -> Share:
    """The share that `--part K/N` names, or that of this task of srun or torchrun."""
    from longvita.data.index.store import EVERYTHING, Share

    if part is None:
        place = current_place()
        return EVERYTHING if place is None else Share(place.rank, place.world_size)
    number, _, count = part.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise typer.BadParameter(f"{part!r} is not K/N with K from 1 to N, such as 2/4", param_hint="--part")
    return Share(int(number) - 1, int(count))


def index_all(config: Config, as_json: bool, rebuild: bool, arguments: str) -> int:
    """Index the files of the mix and of the held-out sources that have no index; print a table or one object.

    Quarantined samples go to the quarantine file of the run. `arguments` name the config in a command line. Returns the
    exit code: 1 if a run would not start with a source. Raises DataError for a file that is missing, TokenizerError.
    """
    from rich.console import Console

    from longvita.data.document import media_settings
    from longvita.data.index.process_pool import IndexProcessPool
    from longvita.data.mix.catalog import files_of, index_files, make_template, open_files
    from longvita.data.mix.missing_files import missing_files
    from longvita.data.mix.quarantine_limit import describe_lossy, lossy_sources
    from longvita.data.report.index_figures import figures_by_source

    template, settings = make_template(config), media_settings(config)
    mixes = {"training": config.data.dataset, "held_out": config.data.validation}
    missing = {mix: missing_files(config, sources) for mix, sources in mixes.items()}
    places = {mix: files_of(config, sources) for mix, sources in mixes.items()}
    with IndexProcessPool.of(config, template) as processes:
        index_files(config, [place for own in places.values() for place in own], processes, is_rebuilt=rebuild)
        found = {mix: open_files(config, own, processes) for mix, own in places.items()}
    figures = {mix: figures_by_source(files, template, settings) for mix, files in found.items()}
    if as_json:
        text = {mix: {source: _as_json(one) for source, one in own.items()} for mix, own in figures.items()}
        print(json.dumps(text | {"missing": missing}))
    else:
        Console(width=max(Console().width, 120)).print(_table(figures))
    _print_unused(figures)
    _print_slow_tables(figures["training"], arguments)
    _print_problems(config, [file for files in found.values() for file in files], list(missing.values()))
    lossy = [one for mix, sources in mixes.items() for one in lossy_sources(config, sources, found[mix])]
    if lossy:
        print(describe_lossy(lossy), file=sys.stderr)
    return EXIT_INCOMPLETE if lossy else EXIT_COMPLETE


def _print_unused(figures: dict[str, dict[str, SourceIndex]]) -> None:
    """Print on stderr what the records of each source hold that is not used, by name."""
    for sources in figures.values():
        for source, one in sources.items():
            if one.unused:
                names = ", ".join(f"{name} {count:,}" for name, count in one.unused.items())
                print(f"not used of source {source!r}, with the number of its samples: {names}", file=sys.stderr)


def _print_slow_tables(figures: dict[str, SourceIndex], arguments: str) -> None:
    """Print on stderr the sources whose row groups are read for one sample's images, with the command that helps."""
    for source, one in figures.items():
        if one.read_ratio > MAX_READ_RATIO:
            command = f"longvita data convert {arguments} --source {shlex.quote(source)} --to webdataset --output DIR"
            print(
                f"source {source!r}: a sample's images or videos cost up to {one.read_ratio:.0f} times their bytes to "
                f"read, because a table's row group is read for them; fix: {command}, then "
                "data_paths: [DIR/*.tar] without columns",
                file=sys.stderr,
            )


def _print_problems(config: Config, files: Sequence[CatalogFile], missing: Sequence[Missing]) -> None:
    """Print on stderr the files that are left out or have no usable sample, and why samples are quarantined."""
    from longvita.data.mix.missing_files import describe_missing
    from longvita.data.quarantine import FILE_NAME, QuarantineFile

    for one in missing:
        if one:
            print(f"data.allow_missing leaves them out: {describe_missing(one)}", file=sys.stderr)
    useless = [file for file in files if not len(file.measured.usable)]
    for file in useless[:MAX_SHOWN]:
        print(f"{file.path} of source {file.source!r} has no sample that can be used", file=sys.stderr)
    if len(useless) > MAX_SHOWN:
        print(f"and {len(useless) - MAX_SHOWN} more files have none", file=sys.stderr)
    firsts = [file.quarantined[0] for file in files if file.quarantined]
    for entry in firsts[:MAX_SHOWN]:
        print(f"first quarantined: {entry.path}:{entry.line}: {entry.reason}: {entry.detail}", file=sys.stderr)
    if firsts:
        quarantine = QuarantineFile(Path(config.output) / FILE_NAME)
        quarantine.add(entry for file in files for entry in file.quarantined)
        print(
            f"all quarantined samples are listed in {quarantine.path}; longvita data retry checks them again",
            file=sys.stderr,
        )


def _as_json(figures: SourceIndex) -> dict:
    rounded = {"bytes_a_sample": round(figures.bytes_a_sample, 2), "read_ratio": round(figures.read_ratio, 2)}
    return dataclasses.asdict(figures) | rounded


def _table(figures: dict[str, dict[str, SourceIndex]]) -> Table:
    from rich.table import Table

    from longvita.data.quarantine import reasons_text

    names = ("mix", "source", "files", "samples", "pictures", "videos", "frames", "tokens", "bytes a sample")
    table = Table(title="index")
    for name in names:
        table.add_column(name, justify="left" if name in ("mix", "source") else "right")
    table.add_column("quarantined")
    for mix, sources in figures.items():
        for source, one in sources.items():
            counts = (one.files, one.samples, one.pictures, one.videos, one.frames, one.tokens)
            texts = [*(f"{count:,}" for count in counts), f"{one.bytes_a_sample:.1f}", reasons_text(one.quarantined)]
            table.add_row(mix.replace("_", " "), source, *texts)
    return table
