"""Figures of the indexes of each source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from longvita.data.chat_template import ChatTemplate
from longvita.data.formats.parquet import Parquet
from longvita.data.index.columns import KIND_BITS, PICTURE, sum_unused
from longvita.data.media.item import MediaSettings
from longvita.data.mix.catalog import CatalogFile, by_source, unusable_reasons
from longvita.data.mix.measure import count_media


@dataclass(frozen=True)
class SourceIndex:
    """Sums over the indexes of a source's files."""

    files: int
    samples: int
    """Quarantined ones included."""
    quarantined: dict[str, int]
    """Samples that cannot be used, by reason word."""
    pictures: int
    videos: int
    frames: int
    """Sampled from the videos at the config's limits."""
    tokens: int
    """Of the samples that can be used, at the config's limits."""
    index_bytes: int
    """Size of the index."""
    unused: dict[str, int]
    """Samples whose record has a value of a name that is not used, by name."""
    read_ratio: float
    """Bytes read for the images or videos of one sample divided by their own, in the table with the largest groups; 0
    if no file is a table that holds them."""

    @property
    def bytes_a_sample(self) -> float:
        """Bytes of index for each sample that can be used."""
        return self.index_bytes / max(self.samples - sum(self.quarantined.values()), 1)


def figures_by_source(
    files: Sequence[CatalogFile], template: ChatTemplate, settings: MediaSettings
) -> dict[str, SourceIndex]:
    """The figures of each source, by its name."""
    return {source: source_index(own, template, settings) for source, own in by_source(files).items()}


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
        sums["index_bytes"] += columns.nbytes
    unused = sum_unused(file.index.unused for file in files)
    samples = sum(file.num_samples for file in files)
    ratio = _read_ratio(files)
    return SourceIndex(len(files), samples, unusable_reasons(files), **sums, unused=unused, read_ratio=ratio)


def _read_ratio(files: Sequence[CatalogFile]) -> float:
    """The read_ratio of a source. One file is opened for it: that with the most samples in a group."""
    counts = {
        number: file.index.media_samples_by_offset() for number, file in enumerate(files) if len(file.index.shapes)
    }
    largest = max(counts, key=lambda number: max(counts[number].values(), default=0), default=None)
    if largest is None:
        return 0.0
    return Parquet(files[largest].settings.options).read_ratio(files[largest].path, counts[largest])
