"""The catalog of a mix: all its samples, numbered, with their tokens, tiles and frame limits, and those left out.

It is built from the indexes of the files alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from longvita.config.schema import Config, DatasetConfig
from longvita.data.chat_template import ChatTemplate
from longvita.data.document import (
    DocumentRequest,
    index_folder,
    media_facts_folder,
    media_settings,
    packet_table_folder,
)
from longvita.data.errors import DataError
from longvita.data.formats.paths import data_file, format_of
from longvita.data.formats.record import FormatOptions
from longvita.data.index.build import IndexSettings, KnownMedia
from longvita.data.index.columns import FileIndex
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import EVERYTHING, IndexJob, Share, forget_index, open_index, update_indexes
from longvita.data.media.item import MediaSettings
from longvita.data.mix.measure import Measured, measure
from longvita.data.mix.missing_files import Missing, describe_missing, files_of_mix, lacks_all_files, missing_files
from longvita.data.mix.mixture import select_samples
from longvita.data.mix.progress import indexing
from longvita.data.quarantine import QuarantinedSample, count_reasons
from longvita.data.tokenizer import load_tokenizer

FilePlace = tuple[str, DatasetConfig, str]
"""Source name, source and path relative to data_root of a file of a mix."""


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
        lines = (*self.index.quarantined, *self.measured.unusable)
        return [line.of(self.source, self.path) for line in lines]


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


def build_catalog(config: Config, template: ChatTemplate, sources: dict[str, DatasetConfig]) -> Catalog:
    """Build the catalog of a mix; its files are indexed first.

    Raises DataError if no sample is left or files are missing; with data.allow_missing, if all are.
    """
    with IndexProcessPool.of(config, template) as processes:
        places = files_of(config, sources)
        index_files(config, places, processes)
        files = open_files(config, places, processes)
    if sum(len(file.selected) for file in files) == 0:
        fitting = sum(len(file.measured.usable) for file in files)
        raise DataError(
            f"no sample to train on in {', '.join(sources) or 'an empty mix'}: {fitting} are usable, quarantined are "
            f"{unusable_reasons(files) or 'none'}; fix: see data.dataset, its ratio and num, and "
            f"data.sequence_length {config.data.sequence_length}. longvita data index lists the quarantined samples, "
            "and with --rebuild looks again for pictures and videos that were missing"
        )
    return Catalog(files, media_settings(config), missing_files(config, sources))


def files_of(config: Config, sources: Mapping[str, DatasetConfig]) -> list[FilePlace]:
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


def index_job(config: Config, dataset: DatasetConfig, path: str, processes: IndexProcessPool) -> IndexJob:
    """Return how one file of a mix is indexed."""
    media_root = dataset.media_root if dataset.media_root is not None else config.data.media_root
    format = format_of(data_file(config.data, path), dataset.format)
    options = FormatOptions.of(dataset)
    known = KnownMedia(str(packet_table_folder(config)), str(media_facts_folder(config)))
    settings = IndexSettings(media_root, format, options, dataset.folder_fps, known)
    return IndexJob(processes, settings, index_folder(config))


def index_files(
    config: Config,
    places: Sequence[FilePlace],
    processes: IndexProcessPool,
    share: Share = EVERYTHING,
    is_rebuilt: bool = False,
) -> bool:
    """Index files of mixes that have no index or changed, in one pass; as for `update_indexes`.

    is_rebuilt: delete existing indexes first, and read the headers of all media files again.
    """
    jobs = [index_job(config, dataset, path, processes) for _, dataset, path in places]
    files = [(data_file(config.data, path), job) for (_, _, path), job in zip(places, jobs)]
    if is_rebuilt:
        for file, job in files:
            forget_index(file, job)
        files = [(file, job.renewed()) for file, job in files]
    with indexing() as show:
        return update_indexes(files, show, share)


def index_mixes(config: Config, share: Share = EVERYTHING) -> bool:
    """Index the files of the training mix and of the held-out sources, as `index_files` does.

    Raises DataError for files that are missing, TokenizerError.
    """
    with IndexProcessPool.of(config, make_template(config)) as processes:
        mixes = (config.data.dataset, config.data.validation)
        return index_files(config, [place for mix in mixes for place in files_of(config, mix)], processes, share)


def open_files(config: Config, places: Sequence[FilePlace], processes: IndexProcessPool) -> list[CatalogFile]:
    """Open the indexes of files of a mix, which `index_files` has made, and measure them for this run."""
    return [_open_file(config, *place, processes) for place in places]


def _open_file(
    config: Config, source: str, dataset: DatasetConfig, path: str, processes: IndexProcessPool
) -> CatalogFile:
    file = data_file(config.data, path)
    job = index_job(config, dataset, path, processes)
    index = open_index(file, job)
    measured = measure(index, processes.template, media_settings(config), config.data.sequence_length)
    selected = select_samples(len(measured.usable), dataset.ratio, dataset.num, config.seed, f"{source}/{path}")
    return CatalogFile(source, file, job.settings, index, measured, measured.usable[selected])
