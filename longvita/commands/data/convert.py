"""`longvita data convert`: the samples of a data file, or of a config's training mix, in one of two formats."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longvita.commands.support.config_file import load_config
from longvita.data.errors import DataError, SampleError
from longvita.data.formats import read_samples
from longvita.data.formats.paths import data_file, files_of_entry
from longvita.data.formats.record import NO_OPTIONS, FormatOptions
from longvita.data.formats.writers import JsonlWriter, WebDatasetWriter, Writer
from longvita.data.mix.catalog import files_of
from longvita.data.mix.missing_files import describe_missing, missing_files
from longvita.data.quarantine import FILE_NAME, QuarantinedSample, QuarantineFile, count_reasons
from longvita.data.storage import remote

TARGETS = ("jsonl", "webdataset")
ALL_WRITTEN, SOME_BROKEN = 0, 1
"""Exit codes."""


@dataclass(frozen=True)
class Source:
    """Data files that become one."""

    name: str
    files: tuple[str, ...]
    format: str | None
    options: FormatOptions
    media_root: str


@dataclass(frozen=True)
class ConvertOptions:
    """What `longvita data convert` is asked for."""

    source: str
    """A config (.yaml), or a data file, folder, pattern or address."""
    to: str
    """One of TARGETS."""
    output: str
    """Folder that is made."""
    shard_bytes: int
    """A shard is full when it has as many."""
    media_root: str | None = None
    """Folder that picture and video paths are relative to; the config's when None."""
    format: str | None = None
    """Name of a data file's format; by the end of its name when None."""
    options: FormatOptions = NO_OPTIONS


def convert(options: ConvertOptions) -> int:
    """Writes every sample that can be used, and the others to the quarantine file of the output folder.

    Returns the exit code: 0 if every sample was written, 1 if some could not. Raises DataError for an output that
    exists, a target that is unknown and a source that is not there. The folder has its name when all is written.
    """
    target = Path(options.output)
    draft = target.with_name(f"{target.name}.partial")
    if options.to not in TARGETS:
        raise DataError(f"--to {options.to!r} is none of {', '.join(TARGETS)}")
    if remote.is_remote(options.output):
        raise DataError(f"--output {options.output} is an address; give a folder of this machine")
    for path in (target, draft):
        if path.exists():
            raise DataError(f"--output {path} exists; remove it or give another folder")
    sources = _sources(options)
    names = [_file_name(source) for source in sources]
    if len(set(names)) < len(names):
        raise DataError(f"two sources would both become {max(names, key=names.count)}; give them other names")
    draft.mkdir(parents=True)
    try:
        broken = [entry for source in sources for entry in _convert_source(source, options, draft, target)]
    except BaseException:
        shutil.rmtree(draft)
        raise
    QuarantineFile(draft / FILE_NAME).add(broken)
    draft.rename(target)
    reasons = ", ".join(f"{reason} {count}" for reason, count in count_reasons(broken).items())
    print(f"{target}: {len(broken)} samples set aside{f' ({reasons})' if reasons else ''}", file=sys.stderr)
    return SOME_BROKEN if broken else ALL_WRITTEN


def _convert_source(source: Source, options: ConvertOptions, draft: Path, target: Path) -> list[QuarantinedSample]:
    """Writes one source; what is broken in it."""
    writer = _writer(source, options, draft, target)
    written, broken = 0, []
    try:
        for file in source.files:
            for place, sample in read_samples(file, source.format, source.options):
                try:
                    if isinstance(sample, SampleError):
                        raise sample
                    writer.add(written + 1, sample)
                    written += 1
                except SampleError as error:
                    broken.append(QuarantinedSample.because(error, source.name, file, place.line))
    finally:
        writer.close()
    print(f"{source.name}: {written} samples written; their media_root is {writer.media_root}", file=sys.stderr)
    return broken


def _writer(source: Source, options: ConvertOptions, draft: Path, target: Path) -> Writer:
    name = _file_name(source)
    if options.to == "jsonl":
        return JsonlWriter(draft, target, name, source.media_root)
    return WebDatasetWriter(draft, name, source.media_root, options.shard_bytes)


def _file_name(source: Source) -> str:
    return re.sub(r"[^\w.+()-]+", "_", source.name).strip("_.") or "samples"


def _sources(options: ConvertOptions) -> list[Source]:
    if options.source.endswith((".yaml", ".yml")):
        return list(_sources_of_config(options))
    files = tuple(files_of_entry("", options.source))
    name = Path(options.source.rstrip("/")).stem
    return [Source(name, files, options.format, options.options, options.media_root or ".")]


def _sources_of_config(options: ConvertOptions) -> Iterator[Source]:
    """The sources of a training mix, those with ratio 0 left out; every sample of each counts once."""
    if options.format is not None or options.options != NO_OPTIONS:
        raise DataError("--format, --column and --prompt are for a data file; a config has its own")
    config = load_config(options.source)
    data = config.data
    places = files_of(config, data.dataset)
    missing = missing_files(config, data.dataset)
    if missing:
        print(f"data.allow_missing leaves them out: {describe_missing(missing)}", file=sys.stderr)
    for name, dataset in data.dataset.items():
        files = tuple(data_file(data, path) for source, _, path in places if source == name)
        if files:
            own_root = data.media_root if dataset.media_root is None else dataset.media_root
            root = own_root if options.media_root is None else options.media_root
            yield Source(name, files, dataset.format, FormatOptions.of(dataset.columns, dataset.prompt), root)
