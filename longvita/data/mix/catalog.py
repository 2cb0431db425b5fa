"""The catalog of a mix: all its samples, numbered, with their tokens, tiles and frame limits, and those left out.

It is built from the indexes of the files alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from longvita.config.schema import Config, DatasetConfig
from longvita.data.chat_template import ChatTemplate
from longvita.data.document import DocumentRequest, index_folder, media_settings, packet_table_folder
from longvita.data.errors import DataError
from longvita.data.formats.paths import data_file, format_of
from longvita.data.formats.record import FormatOptions
from longvita.data.index.build import IndexSettings
from longvita.data.index.columns import FileIndex
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexJob, IndexProgress, load_index
from longvita.data.media.item import MediaSettings
from longvita.data.mix.measure import Measured, measure
from longvita.data.mix.missing_files import Missing, describe_missing, files_of_mix, lacks_all_files, missing_files
from longvita.data.mix.mixture import select_samples
from longvita.data.quarantine import QuarantinedSample, count_reasons
from longvita.data.tokenizer import load_tokenizer


@dataclass(frozen=True)
class CatalogFile:
    """One file of a mix."""

    source: str
    path: str
    settings: IndexSettings
    """Settings that its index depends on, its format and media folder included."""
    index: FileIndex
    measured: Measured
    selected: np.ndarray
    """[k] int64, numbers of its samples that the mix uses; a number may occur more than once."""

    @property
    def num_samples(self) -> int:
        """Number of all its samples, unusable ones included."""
        return len(self.index) + len(self.index.quarantined)

    @property
    def quarantined(self) -> list[QuarantinedSample]:
        """Its unusable samples."""
        return [*self.index.quarantined, *self.measured.too_long]


def unusable_reasons(files: Iterable[CatalogFile]) -> dict[str, int]:
    """Count the unusable samples of files by reason word."""
    return count_reasons(entry for file in files for entry in file.quarantined)


def by_source(files: Iterable[CatalogFile]) -> dict[str, list[CatalogFile]]:
    """Group files by their source."""
    groups: dict[str, list[CatalogFile]] = {}
    for file in files:
        groups.setdefault(file.source, []).append(file)
    return groups


class Catalog:
    """The files of a mix. Samples are numbered consecutively over all files, in the order of the config."""

    def __init__(self, files: Sequence[CatalogFile], settings: MediaSettings, missing: Missing | None = None):
        self.files = tuple(files)
        self.settings = settings
        self.missing = missing or {}
        """Missing data files, which are left out, by source."""
        self._starts = np.cumsum([0, *(len(file.index) for file in self.files)]).tolist()
        self.lengths = np.concatenate([file.measured.lengths for file in self.files])
        self.tiles = np.concatenate([file.measured.tiles for file in self.files])
        self.selected = np.concatenate([file.selected + start for file, start in zip(self.files, self._starts)])
        """[k] int64, the samples that the mix uses, file after file."""

    @property
    def quarantined(self) -> list[QuarantinedSample]:
        """All unusable samples of the files."""
        return [entry for file in self.files for entry in file.quarantined]

    def file_numbers(self, samples: np.ndarray) -> np.ndarray:
        """Return the number [k] int64, among `files`, of the file of each of `samples` [k]."""
        return np.searchsorted(self._starts, samples, side="right") - 1

    def request(self, sample: int) -> DocumentRequest:
        """Return the request that reads a sample, without any tile."""
        position = bisect.bisect_right(self._starts, int(sample)) - 1
        file, number = self.files[position], int(sample) - self._starts[position]
        index, measured = file.index, file.measured
        return DocumentRequest(
            path=file.path,
            format=file.settings.format,
            options=file.settings.options,
            place=index.place(number),
            names=int(index.rows["names"][number]),
            source=file.source,
            media_root=file.settings.media_root,
            facts=index.facts(number),
            max_num_frames=int(measured.frame_limits[number]),
            length=int(measured.lengths[number]),
            num_tiles=int(measured.tiles[number]),
        )


def make_template(config: Config) -> ChatTemplate:
    """Make the chat template of a run. Raises TokenizerError, DataError if the model's vocabulary is too small."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    rows = config.model.language.vocab_size
    if tokenizer.vocab_size > rows:
        raise DataError(
            f"the tokenizer {config.data.tokenizer} has {tokenizer.vocab_size} tokens with the added ones, but "
            f"model.language.vocab_size is {rows}; fix: raise it or use another tokenizer"
        )
    return ChatTemplate(tokenizer, config.model.tokens_per_tile)


def build_catalog(
    config: Config,
    template: ChatTemplate,
    sources: dict[str, DatasetConfig],
    open_one: Callable[..., CatalogFile] | None = None,
) -> Catalog:
    """Build the catalog of a mix.

    open_one: opens each file, with the arguments of `open_file`, the default. Raises DataError if no sample is left or
    files are missing; with data.allow_missing, if all are.
    """
    places = files_of(config, sources)
    with IndexProcessPool.of(config, template) as processes:
        files = [(open_one or open_file)(config, *place, processes) for place in places]
    if sum(len(file.selected) for file in files) == 0:
        fitting = sum(len(file.measured.usable) for file in files)
        raise DataError(
            f"no sample to train on in {', '.join(sources) or 'an empty mix'}: {fitting} are usable, quarantined are "
            f"{unusable_reasons(files) or 'none'}; fix: see data.dataset, its ratio and num, and "
            f"data.sequence_length {config.data.sequence_length}. longvita data index lists the quarantined samples, "
            "and with --rebuild looks again for pictures and videos that were missing"
        )
    return Catalog(files, media_settings(config), missing_files(config, sources))


def files_of(config: Config, sources: Mapping[str, DatasetConfig]) -> list[tuple[str, DatasetConfig, str]]:
    """List the source name, source and path relative to data_root of each file of a mix.

    Raises DataError if files are missing; with data.allow_missing missing files are left out, and DataError is raised
    only if all are missing.
    """
    missing = missing_files(config, sources)
    if missing and (not config.data.allow_missing or lacks_all_files(config, sources, missing)):
        fix = "fetch them (longvita data fetch CONFIG) or set data.data_root to the folder that holds them"
        if not config.data.allow_missing:
            fix += ", or leave them out and have them counted (data.allow_missing=true, --allow-missing)"
        raise DataError(f"{describe_missing(missing)}\nfix: {fix}")
    return [
        (source, dataset, path)
        for source, dataset, path in files_of_mix(config, sources)
        if data_file(config.data, path) not in missing.get(source, ())
    ]


def index_job(config: Config, source: str, dataset: DatasetConfig, path: str, processes: IndexProcessPool) -> IndexJob:
    """Return how one file of a mix is indexed."""
    media_root = dataset.media_root if dataset.media_root is not None else config.data.media_root
    format = format_of(data_file(config.data, path), dataset.format)
    options = FormatOptions.of(dataset)
    tables = str(packet_table_folder(config))
    settings = IndexSettings(source, media_root, config.data.max_fps, format, options, dataset.folder_fps, tables)
    return IndexJob(processes, settings, index_folder(config))


def open_file(
    config: Config,
    source: str,
    dataset: DatasetConfig,
    path: str,
    processes: IndexProcessPool,
    progress: Callable[[IndexProgress], None] = lambda progress: None,
) -> CatalogFile:
    """Index and measure one file of a mix; `progress` as for load_index. Raises DataError if it is missing."""
    file = data_file(config.data, path)
    job = index_job(config, source, dataset, path, processes)
    index = load_index(file, job, progress)
    measured = measure(index, processes.template, media_settings(config), config.data.sequence_length, source, file)
    selected = select_samples(len(measured.usable), dataset.ratio, dataset.num, config.seed, f"{source}/{path}")
    return CatalogFile(source, file, job.settings, index, measured, measured.usable[selected])
