"""All samples of a mix under one numbering, measured for a run: their tokens, tiles, frame limits and what is left out.

Built from the indexes of the mix's files alone. A sample whose videos make it longer than a sequence gets the largest
frame limit at which it fits; one that is too long even so is set aside.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvita.config.schema import Config, DatasetConfig
from longvita.data.document import DocumentRequest, media_settings
from longvita.data.errors import DataError, Reason
from longvita.data.index import FileIndex, IndexSettings, load_index
from longvita.data.media.item import MediaFacts, MediaSettings
from longvita.data.media.video import most_frames_that_fit
from longvita.data.missing import Missing, describe_missing, holds_nothing, missing_files
from longvita.data.mixture import shuffle, take
from longvita.data.packing import EpochPlan
from longvita.data.quarantine import SetAside, count_reasons
from longvita.data.template import ChatTemplate
from longvita.data.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Measured:
    """The samples of one file as one run sees them."""

    lengths: np.ndarray
    """[n] int64, tokens of each sample at its frame limit."""
    tiles: np.ndarray
    """[n] int64, tiles and frames of each sample at its frame limit."""
    frame_limits: np.ndarray
    """[n] int64, most frames of each of a sample's videos."""
    usable: np.ndarray
    """[k] int64, numbers of the samples that fit a sequence."""
    too_long: tuple[SetAside, ...]
    """The others."""


def measure(
    index: FileIndex, template: ChatTemplate, settings: MediaSettings, sequence_length: int, source: str, path: str
) -> Measured:
    """Lengths of a file's samples for one template, media settings and sequence length."""
    lengths, tiles = index.text_tokens.copy(), np.zeros(len(index), np.int64)
    limits = np.full(len(index), settings.max_num_frames, np.int64)
    usable, too_long = [], []
    with_media = np.diff(index.media_starts) > 0
    for number in range(len(index)):
        if with_media[number]:
            fitted = _fit(index.facts(number), int(index.text_tokens[number]), template, settings, sequence_length)
            lengths[number], tiles[number], limits[number] = fitted
        if lengths[number] <= sequence_length:
            usable.append(number)
        else:
            detail = f"{lengths[number]} tokens do not fit data.sequence_length {sequence_length}"
            detail += " even at one frame a video" if limits[number] == 1 and settings.max_num_frames > 1 else ""
            too_long.append(SetAside(source, path, int(index.lines[number]), Reason.TOO_LONG, detail))
    return Measured(lengths, tiles, limits, np.asarray(usable, np.int64), tuple(too_long))


def _fit(
    facts: MediaFacts, text_tokens: int, template: ChatTemplate, settings: MediaSettings, sequence_length: int
) -> tuple[int, int, int]:
    """Tokens, tiles and frame limit of a sample: the run's limit, or the largest at which it fits a sequence."""
    grids = facts.grids(settings)
    still = text_tokens + sum(template.picture_length(grid) for grid in grids)
    limit = settings.max_num_frames
    frames = sum(facts.frame_counts(settings))
    if facts.videos and still + frames * template.tokens_per_frame > sequence_length:
        room = (sequence_length - still) // template.tokens_per_frame
        limit = most_frames_that_fit(facts.videos, settings.max_fps, settings.max_num_frames, room) or 1
        frames = sum(facts.frame_counts(settings, limit))
    return still + frames * template.tokens_per_frame, sum(grid.num_tiles for grid in grids) + frames, limit


@dataclass(frozen=True)
class CatalogFile:
    """One file of a mix."""

    source: str
    path: str
    media_root: str
    index: FileIndex
    measured: Measured
    taken: np.ndarray
    """[k] int64, numbers of its samples that the mix takes; a number may be there more than once."""


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
            offset=int(index.offsets[number]),
            size=int(index.sizes[number]),
            line=int(index.lines[number]),
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
    """The catalog of a mix. Raises DataError if no sample is left or files are missing; with data.allow_missing, if all
    are.
    """
    settings = media_settings(config)
    missing = _check_missing(config, sources)
    files = [
        _open_file(config, template, settings, source, dataset, path)
        for source, dataset in sources.items()
        if dataset.ratio > 0
        for path in dataset.data_paths
        if str(config.data.data_file(path)) not in missing.get(source, ())
    ]
    if sum(len(file.taken) for file in files) == 0:
        entries = [entry for file in files for entry in (*file.index.broken, *file.measured.too_long)]
        fitting = sum(len(file.measured.usable) for file in files)
        raise DataError(
            f"no sample to train on in {', '.join(sources) or 'an empty mix'}: {fitting} can be used, set aside are "
            f"{count_reasons(entries) or 'none'}; see data.dataset, its ratio and num, and "
            f"data.sequence_length {config.data.sequence_length}"
        )
    return Catalog(files, settings, missing)


def plan_epoch(catalog: Catalog, config: Config, epoch: int) -> EpochPlan:
    """The sequences of one epoch of a catalog."""
    samples = shuffle(catalog.taken, config.seed, epoch)
    return EpochPlan(samples, catalog.lengths[samples], config.data.sequence_length, config.seed, epoch)


def _check_missing(config: Config, sources: Mapping[str, DatasetConfig]) -> dict[str, list[str]]:
    missing = missing_files(config, sources)
    if missing and (not config.data.allow_missing or holds_nothing(sources, missing)):
        ways_out = "fetch them (longvita data fetch CONFIG) or set data.data_root to the folder that holds them"
        if not config.data.allow_missing:
            ways_out += ", or leave them out and have them counted (data.allow_missing=true, --allow-missing)"
        raise DataError(f"{describe_missing(missing)}\n{ways_out}")
    return missing


def _open_file(
    config: Config, template: ChatTemplate, settings: MediaSettings, source: str, dataset: DatasetConfig, path: str
) -> CatalogFile:
    data_file = str(config.data.data_file(path))
    media_root = dataset.media_root if dataset.media_root is not None else config.data.media_root
    cache = config.data.index_cache or Path(config.output) / "index"
    index = load_index(data_file, template, IndexSettings(source, media_root, settings.max_fps), cache)
    measured = measure(index, template, settings, config.data.sequence_length, source, data_file)
    taken = measured.usable[take(len(measured.usable), dataset.ratio, dataset.num, config.seed, f"{source}/{path}")]
    return CatalogFile(source, data_file, media_root, index, measured, taken)
