"""All samples of a mix under one numbering, measured for a run: their tokens, tiles, frame limits and what is left out.

Built from the indexes of the mix's files alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvita.config.schema import Config, DatasetConfig
from longvita.data.chat_template import ChatTemplate
from longvita.data.document import DocumentRequest, media_settings
from longvita.data.errors import DataError
from longvita.data.formats.record import FormatOptions
from longvita.data.index.build import IndexSettings
from longvita.data.index.columns import FileIndex
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexJob, IndexProgress, load_index
from longvita.data.media.item import MediaSettings
from longvita.data.mix.measure import Measured, measure
from longvita.data.mix.missing_files import Missing, describe_missing, files_of_mix, holds_nothing, missing_files
from longvita.data.mix.mixture import take
from longvita.data.mix.paths import data_file, format_of
from longvita.data.quarantine import QuarantinedSample, count_reasons
from longvita.data.tokenizer import load_tokenizer


@dataclass(frozen=True)
class CatalogFile:
    """One file of a mix."""

    source: str
    path: str
    settings: IndexSettings
    """What its index depends on, its format and media folder among them."""
    index: FileIndex
    measured: Measured
    taken: np.ndarray
    """[k] int64, numbers of its samples that the mix takes; a number may be there more than once."""

    @property
    def num_samples(self) -> int:
        """All its samples, those that cannot be used among them."""
        return len(self.index) + len(self.index.quarantined)

    @property
    def quarantined(self) -> list[QuarantinedSample]:
        """Its samples that cannot be used."""
        return [*self.index.quarantined, *self.measured.too_long]


class Catalog:
    """The files of a mix. Samples are numbered through all files, in the order of the config."""

    def __init__(self, files: Sequence[CatalogFile], settings: MediaSettings, missing: Missing | None = None):
        self.files = tuple(files)
        self.settings = settings
        self.missing = missing or {}
        """Data files that are not there and are left out, by source."""
        sizes = [len(file.index) for file in self.files]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self.lengths = np.concatenate([file.measured.lengths for file in self.files])
        self.tiles = np.concatenate([file.measured.tiles for file in self.files])
        self.taken = np.concatenate([file.taken + start for file, start in zip(self.files, self._starts)])
        """[k] int64, the samples that the mix takes, file after file."""

    @property
    def quarantined(self) -> list[QuarantinedSample]:
        """Every sample of the files that cannot be used."""
        return [entry for file in self.files for entry in file.quarantined]

    def file_numbers(self, samples: np.ndarray) -> np.ndarray:
        """[k] int64: for each of `samples`, the number of its file among `files`."""
        return np.searchsorted(self._starts, samples, side="right") - 1

    def source_of(self, sample: int) -> str:
        """Name of a sample's source."""
        return self._file_of(sample)[0].source

    def request(self, sample: int) -> DocumentRequest:
        """What a worker needs to read a sample; no tile is wanted yet."""
        file, number = self._file_of(sample)
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

    def _file_of(self, sample: int) -> tuple[CatalogFile, int]:
        position = bisect.bisect_right(self._starts, int(sample)) - 1
        return self.files[position], int(sample) - self._starts[position]


def make_template(config: Config) -> ChatTemplate:
    """The run's chat template. Raises TokenizerError, and DataError if the model has too few rows for the tokenizer."""
    tokenizer = load_tokenizer(config.data.tokenizer)
    rows = config.model.language.vocab_size
    if tokenizer.vocab_size > rows:
        raise DataError(
            f"the tokenizer {config.data.tokenizer} has {tokenizer.vocab_size} tokens with the added ones, but "
            f"model.language.vocab_size is {rows}; raise it or take another tokenizer"
        )
    return ChatTemplate(tokenizer, config.model.tokens_per_tile)


def build_catalog(
    config: Config,
    template: ChatTemplate,
    sources: dict[str, DatasetConfig],
    open_one: Callable[..., CatalogFile] | None = None,
) -> Catalog:
    """The catalog of a mix. Raises DataError if no sample is left or files are missing; with data.allow_missing, if all
    are.

    open_one: what opens each file, with the arguments of `open_file`, which it is when absent.
    """
    places = files_of(config, sources)
    with IndexProcessPool.of(config, template) as processes:
        files = [(open_one or open_file)(config, *place, processes) for place in places]
    if sum(len(file.taken) for file in files) == 0:
        entries = [entry for file in files for entry in file.quarantined]
        fitting = sum(len(file.measured.usable) for file in files)
        raise DataError(
            f"no sample to train on in {', '.join(sources) or 'an empty mix'}: {fitting} can be used, set aside are "
            f"{count_reasons(entries) or 'none'}; see data.dataset, its ratio and num, and "
            f"data.sequence_length {config.data.sequence_length}. longvita data index lists what is set aside, and "
            "looks again, with --anew, at pictures and videos that were not there"
        )
    return Catalog(files, media_settings(config), missing_files(config, sources))


def index_folder(config: Config) -> Path:
    """Where the indexes and plans of a run lie."""
    return Path(config.data.index_cache or Path(config.output) / "index")


def files_of(config: Config, sources: Mapping[str, DatasetConfig]) -> list[tuple[str, DatasetConfig, str]]:
    """Source name, source and path relative to data_root of each file of a mix.

    Raises DataError if files are missing; with data.allow_missing they are left out, and it is raised if all are.
    """
    missing = missing_files(config, sources)
    if missing and (not config.data.allow_missing or holds_nothing(config, sources, missing)):
        ways_out = "fetch them (longvita data fetch CONFIG) or set data.data_root to the folder that holds them"
        if not config.data.allow_missing:
            ways_out += ", or leave them out and have them counted (data.allow_missing=true, --allow-missing)"
        raise DataError(f"{describe_missing(missing)}\n{ways_out}")
    return [
        (source, dataset, path)
        for source, dataset, path in files_of_mix(config, sources)
        if data_file(config.data, path) not in missing.get(source, ())
    ]


def index_job(config: Config, source: str, dataset: DatasetConfig, path: str, processes: IndexProcessPool) -> IndexJob:
    """How one file of a mix is indexed."""
    media_root = dataset.media_root if dataset.media_root is not None else config.data.media_root
    format = format_of(data_file(config.data, path), dataset.format)
    options = FormatOptions.of(dataset.columns, dataset.prompt)
    settings = IndexSettings(source, media_root, config.data.max_fps, format, options)
    return IndexJob(processes, settings, index_folder(config))


def open_file(
    config: Config,
    source: str,
    dataset: DatasetConfig,
    path: str,
    processes: IndexProcessPool,
    progress: Callable[[IndexProgress], None] = lambda progress: None,
) -> CatalogFile:
    """One file of a mix, indexed and measured; `progress` as for load_index. Raises DataError if it is missing."""
    file = data_file(config.data, path)
    job = index_job(config, source, dataset, path, processes)
    index = load_index(file, job, progress)
    template = processes.template
    measured = measure(index, template, media_settings(config), config.data.sequence_length, source, file)
    taken = measured.usable[take(len(measured.usable), dataset.ratio, dataset.num, config.seed, f"{source}/{path}")]
    return CatalogFile(source, file, job.settings, index, measured, taken)
