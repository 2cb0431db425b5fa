"""`longvita data index`: indexes every file of a config, and tells what is in them."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from longvita.config.schema import Config, DatasetConfig
from longvita.data.chat_template import ChatTemplate
from longvita.data.document import media_settings
from longvita.data.formats.paths import data_file
from longvita.data.index.columns import KIND_BITS, PICTURE
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import forget_index, size_of
from longvita.data.media.item import MediaSettings
from longvita.data.mix.catalog import CatalogFile, files_of, index_job, make_template
from longvita.data.mix.measure import count_media
from longvita.data.mix.missing_files import Missing, describe_missing, missing_files
from longvita.data.mix.progress import indexing
from longvita.data.quarantine import FILE_NAME, QuarantineFile, count_reasons, reasons_text

FIRSTS_SHOWN = 10
"""Files of which the first sample that is set aside is told."""


@dataclass(frozen=True)
class SourceIndex:
    """What the indexes of a source's files hold."""

    files: int
    samples: int
    """Those set aside among them."""
    quarantined: dict[str, int]
    """Samples that cannot be used, by reason word."""
    pictures: int
    videos: int
    frames: int
    """Taken from the videos at the config's limits."""
    tokens: int
    """Of the samples that can be used, at the config's limits."""
    index_bytes: int
    """Size of the index."""

    @property
    def bytes_a_sample(self) -> float:
        """Bytes of index for each sample that can be used."""
        return self.index_bytes / max(self.samples - sum(self.quarantined.values()), 1)


def index(config: Config, as_json: bool, anew: bool = False) -> int:
    """Indexes the files of the mix and of the held-out sources, as far as they are not; prints a table or one object.

    What is set aside goes to the quarantine file of the run. anew: the indexes that are there are forgotten first. The
    exit code. Raises DataError for a file that is missing, TokenizerError.
    """
    template, settings = make_template(config), media_settings(config)
    mixes = {"training": config.data.dataset, "held_out": config.data.validation}
    missing = {mix: missing_files(config, sources) for mix, sources in mixes.items()}
    found: dict[str, list[CatalogFile]] = {}
    with IndexProcessPool.of(config, template) as processes:
        for mix, sources in mixes.items():
            places = files_of(config, sources)
            if anew:
                _forget(config, places, processes)
            with indexing(sum(size_of(data_file(config.data, path)) for _, _, path in places)) as open_one:
                found[mix] = [open_one(config, *place, processes) for place in places]
    figures = {mix: _by_source(files, template, settings) for mix, files in found.items()}
    if as_json:
        text = {mix: {source: _as_json(one) for source, one in own.items()} for mix, own in figures.items()}
        print(json.dumps(text | {"missing": missing}))
    else:
        Console(width=max(Console().width, 120)).print(_table(figures))
    _tell(config, [file for files in found.values() for file in files], list(missing.values()))
    return 0


def _forget(config: Config, places: Sequence[tuple[str, DatasetConfig, str]], processes: IndexProcessPool) -> None:
    for source, dataset, path in places:
        forget_index(data_file(config.data, path), index_job(config, source, dataset, path, processes))


def _tell(config: Config, files: Sequence[CatalogFile], missing: Sequence[Missing]) -> None:
    """Says on stderr what the figures do not: files that are left out or give nothing, and why samples are not used."""
    for one in missing:
        if one:
            print(f"data.allow_missing leaves them out: {describe_missing(one)}", file=sys.stderr)
    for file in files:
        if not len(file.measured.usable):
            print(f"{file.path} of source {file.source!r} gives no sample that can be used", file=sys.stderr)
    firsts = [file.quarantined[0] for file in files if file.quarantined]
    for entry in firsts[:FIRSTS_SHOWN]:
        print(f"set aside first: {entry.path}:{entry.line}: {entry.reason}: {entry.detail}", file=sys.stderr)
    if firsts:
        quarantine = QuarantineFile(Path(config.output) / FILE_NAME)
        quarantine.add(entry for file in files for entry in file.quarantined)
        print(f"all that is set aside stands in {quarantine.path}; longvita data retry looks again", file=sys.stderr)


def _by_source(files: Sequence[CatalogFile], template: ChatTemplate, settings: MediaSettings) -> dict[str, SourceIndex]:
    by_source: dict[str, list[CatalogFile]] = {}
    for file in files:
        by_source.setdefault(file.source, []).append(file)
    return {source: source_index(own, template, settings) for source, own in by_source.items()}


def source_index(files: Sequence[CatalogFile], template: ChatTemplate, settings: MediaSettings) -> SourceIndex:
    """Sums over the files of a source."""
    sums: Counter[str] = Counter()
    for file in files:
        columns, usable = file.index, file.measured.usable
        pictures = int(((columns.media["extent"] >> KIND_BITS) == PICTURE).sum())
        _, picture_tiles, _ = count_media(columns, template, settings)
        sums["pictures"] += pictures
        sums["videos"] += len(columns.media) - pictures
        sums["frames"] += int((file.measured.tiles[usable] - picture_tiles[usable]).sum())
        sums["tokens"] += int(file.measured.lengths[usable].sum(dtype="int64"))
        sums["index_bytes"] += columns.rows.nbytes + columns.media.nbytes + columns.rates.nbytes
    quarantined = count_reasons(entry for file in files for entry in file.quarantined)
    return SourceIndex(len(files), sum(file.num_samples for file in files), quarantined, **sums)


def _as_json(figures: SourceIndex) -> dict:
    return {**dataclasses.asdict(figures), "bytes_a_sample": round(figures.bytes_a_sample, 2)}


def _table(figures: dict[str, dict[str, SourceIndex]]) -> Table:
    names = ("mix", "source", "files", "samples", "pictures", "videos", "frames", "tokens", "bytes a sample")
    table = Table(title="index")
    for name in names:
        table.add_column(name, justify="left" if name in ("mix", "source") else "right")
    table.add_column("set aside")
    for mix, sources in figures.items():
        for source, one in sources.items():
            counts = (one.files, one.samples, one.pictures, one.videos, one.frames, one.tokens)
            texts = [*(f"{count:,}" for count in counts), f"{one.bytes_a_sample:.1f}", reasons_text(one.quarantined)]
            table.add_row(mix.replace("_", " "), source, *texts)
    return table
