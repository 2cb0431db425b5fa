"""All samples of a mix under one numbering, measured for a run: their tokens, tiles, frame limits and what is left out.

Built from the indexes of the mix's files alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvita.config.schema import Config, DatasetConfig
from longvita.data import remote
from longvita.data.document import DocumentRequest, media_settings
from longvita.data.errors import DataError
from longvita.data.index.build import IndexSettings
from longvita.data.index.columns import FileIndex
from longvita.data.index.store import IndexJob, load_index
from longvita.data.measure import Measured, measure
from longvita.data.media.item import MediaSettings
from longvita.data.mixture import shuffle, take
from longvita.data.packing import EpochPlan, Plan
from longvita.data.paths import data_files, format_of
from longvita.data.plan_cache import cached_plan, plan_name
from longvita.data.quarantine import SetAside, count_reasons
from longvita.data.record import FormatOptions
from longvita.data.template import ChatTemplate
from longvita.data.tokenizer import load_tokenizer


@dataclass(frozen=True)
class CatalogFile:
    """One file of a mix."""

    source: str
    path: str
    format: str
    options: FormatOptions
    media_root: str
    index: FileIndex
    measured: Measured
    taken: np.ndarray
    """[k] int64, numbers of its samples that the mix takes; a number may be there more than once."""


class Catalog:
    """The files of a mix. Samples are numbered through all files, in the order of the config."""

    def __init__(self, files: Sequence[CatalogFile], settings: MediaSettings):
        self.files = tuple(files)
        self.settings = settings
        sizes = [len(file.index) for file in self.files]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self.lengths = np.concatenate([file.measured.lengths for file in self.files])
        self.tiles = np.concatenate([file.measured.tiles for file in self.files])
        self.taken = np.concatenate([file.taken + start for file, start in zip(self.files, self._starts)])
        """[k] int64, the samples that the mix takes, file after file."""

    @property
    def set_aside(self) -> list[SetAside]:
        """Every sample of the files that cannot be used."""
        return [entry for file in self.files for entry in (*file.index.broken, *file.measured.too_long)]

    def source_of(self, sample: int) -> str:
        """Name of a sample's source."""
        return self._file_of(sample)[0].source

    def request(self, sample: int) -> DocumentRequest:
        """What a worker needs to read a sample; no tile is wanted yet."""
        file, number = self._file_of(sample)
        index, measured = file.index, file.measured
        return DocumentRequest(
            path=file.path,
            format=file.format,
            options=file.options,
            place=index.place(number),
            names=int(index.rows["names"][number]),
            source=file.source,
            media_root=file.media_root,
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


def build_catalog(config: Config, template: ChatTemplate, sources: dict[str, DatasetConfig]) -> Catalog:
    """The catalog of a mix. Raises DataError if a file is missing or no sample is left."""
    settings = media_settings(config)
    files = [
        _open_file(config, template, settings, source, dataset, path, data_file)
        for source, dataset in sources.items()
        if dataset.ratio > 0
        for path in dataset.data_paths
        for data_file in data_files(config.data.data_root, path)
    ]
    if sum(len(file.taken) for file in files) == 0:
        entries = [entry for file in files for entry in (*file.index.broken, *file.measured.too_long)]
        fitting = sum(len(file.measured.usable) for file in files)
        raise DataError(
            f"no sample to train on in {', '.join(sources) or 'an empty mix'}: {fitting} can be used, set aside are "
            f"{count_reasons(entries) or 'none'}; see data.dataset, its ratio and num, and "
            f"data.sequence_length {config.data.sequence_length}"
        )
    return Catalog(files, settings)


def plan_epoch(catalog: Catalog, config: Config, epoch: int) -> Plan:
    """The sequences of one epoch of a catalog, from the folder of the indexes where they have been packed before."""
    length, taken = config.data.sequence_length, catalog.taken

    def pack() -> EpochPlan:
        samples = shuffle(taken, config.seed, epoch)
        return EpochPlan(samples, catalog.lengths[samples], length, config.seed, epoch)

    return cached_plan(index_folder(config), plan_name(taken, catalog.lengths[taken], length, config.seed, epoch), pack)


def index_folder(config: Config) -> Path:
    """Where the indexes and plans of a run lie."""
    return Path(config.data.index_cache or Path(config.output) / "index")


def _open_file(
    config: Config,
    template: ChatTemplate,
    settings: MediaSettings,
    source: str,
    dataset: DatasetConfig,
    path: str,
    data_file: str,
) -> CatalogFile:
    media_root = dataset.media_root if dataset.media_root is not None else config.data.media_root
    options = FormatOptions.of(dataset.columns, dataset.prompt)
    format = format_of(data_file, dataset.format)
    index_settings = IndexSettings(source, media_root, settings.max_fps, format, options)
    index = load_index(data_file, IndexJob(template, index_settings, index_folder(config), config.data.index_processes))
    measured = measure(index, template, settings, config.data.sequence_length, source, data_file)
    name = path if data_file == remote.join(config.data.data_root, path) else f"{path}/{Path(data_file).name}"
    taken = measured.usable[take(len(measured.usable), dataset.ratio, dataset.num, config.seed, f"{source}/{name}")]
    return CatalogFile(source, data_file, format, options, media_root, index, measured, taken)
