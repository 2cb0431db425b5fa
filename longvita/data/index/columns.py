"""The columns of an index: 32 or 36 bytes for each sample and 8 for each of its pictures and videos, mapped from disk.

A sample of several ranges has 16 more for each further range.

They are mapped read-only: a file of 17 million samples opens at once, and the ranks of a machine share its pages.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from longvita.data.formats.base import Place
from longvita.data.media.item import MediaFacts, PictureFacts
from longvita.data.media.video import VideoFacts
from longvita.data.quarantine import QuarantinedLine

ROW = np.dtype(
    [
        ("offset", "<u8"),
        ("names", "<u8"),
        ("size", "<u4"),
        ("line", "<u4"),
        ("text_tokens", "<u4"),
        ("media_end", "<u4"),
    ]
)
"""A sample: its Place, a hash of its media names, its tokens without tiles, the end of its rows of media."""
MEDIA_ROW = np.dtype([("extent", "<u4"), ("detail", "<u4")])
"""A picture: width and height, pixels. A video: its kind and number of frames, and its index into the frame rates."""
RANGE_ROW = np.dtype([("offset", "<u8"), ("row", "<u4"), ("size", "<u4")])
"""A further range of a sample, which has the number `row`."""
KIND_BITS = 30
"""Bits of an extent below its kind."""
EXTENT = (1 << KIND_BITS) - 1
MIN_MAPPED_BYTES = 64 << 10
"""A smaller file of the index is read instead: each mapped one holds a file open."""
PICTURE, VIDEO_FILE, FRAME_FOLDER = 0, 1, 2
COLUMNS = ("rows", "media", "rates", "ranges", "shapes", "shape_numbers")
MAX_UNUSED_NAMES = 50
"""Names of unused values that are counted by themselves; all others are counted together."""
MAX_NAME = 60
"""Characters of such a name."""
OTHER_NAMES = "(other names)"
NO_SHAPES, NO_SHAPE = np.zeros(0, "S1"), np.zeros(1, "S1")
Shapes = tuple[np.ndarray, np.ndarray]
"""The columns `shapes` and `shape_numbers`."""


@dataclass(frozen=True)
class FileIndex:
    """The usable samples of one data file, and its quarantined ones."""

    rows: np.ndarray
    """[n] ROW."""
    media: np.ndarray
    """[m] MEDIA_ROW, in the order of the samples, the pictures of each before its videos."""
    rates: np.ndarray
    """[r] float64, the distinct frame rates of the file's videos, 1/s."""
    quarantined: Sequence[QuarantinedLine]
    """In the order of their lines."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """Number of usable samples whose record has a value of a name that is not used, by name."""
    ranges: np.ndarray = field(default_factory=lambda: np.zeros(0, RANGE_ROW))
    """[k] RANGE_ROW, in the order of the samples."""
    shapes: np.ndarray = field(default_factory=lambda: NO_SHAPES)
    """[s] bytes, the distinct shapes of the samples' places, ascending; empty if no place has one."""
    shape_numbers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))
    """[n] uint32, index into `shapes` of each sample; empty if no place has one."""

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, number: int) -> Place:
        """The place of a sample in its file."""
        row = self.rows[number]
        shape = self.shapes[self.shape_numbers[number]].decode() if len(self.shapes) else ""
        more = tuple((int(one["offset"]), int(one["size"])) for one in _ranges_of(self, range(number, number + 1)))
        return Place(int(row["offset"]), int(row["size"]), int(row["line"]), more, shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the columns."""
        return sum(getattr(self, name).nbytes for name in COLUMNS)

    def media_starts(self) -> np.ndarray:
        """[n + 1] int64, each sample's first row of `media`."""
        return np.concatenate([[0], self.rows["media_end"]]).astype(np.int64)

    def media_samples_by_offset(self) -> dict[int, int]:
        """For each offset of a place, the number of its samples with pictures or videos."""
        has_media = np.diff(self.media_starts()) > 0
        offsets, counts = np.unique(self.rows["offset"][has_media], return_counts=True)
        return dict(zip(offsets.tolist(), counts.tolist()))

    def facts(self, number: int) -> MediaFacts:
        """The media headers of one sample."""
        start = int(self.rows["media_end"][number - 1]) if number else 0
        rows = self.media[start : int(self.rows["media_end"][number])]
        kinds = rows["extent"] >> KIND_BITS
        pictures = [PictureFacts(int(row["extent"]), int(row["detail"])) for row in rows[kinds == PICTURE]]
        return MediaFacts(tuple(pictures), tuple(self.video(row) for row in rows[kinds != PICTURE]))

    def video(self, row: np.void) -> VideoFacts:
        """The header of a video, from its row of `media`."""
        extent = int(row["extent"])
        rate = float(self.rates[int(row["detail"])])
        return VideoFacts(extent & EXTENT, rate, extent >> KIND_BITS == FRAME_FOLDER)


class QuarantinedEntries(Sequence[QuarantinedLine]):
    """Entries of a mapped file. Parsing is delayed because most readers of an index need only their number.

    Raises ValueError if the file does not hold `count` entries.
    """

    def __init__(self, path: Path, count: int):
        is_small = path.stat().st_size < MIN_MAPPED_BYTES
        self._content = np.fromfile(path, np.uint8) if is_small else np.memmap(path, np.uint8, "r")
        if np.count_nonzero(self._content == ord("\n")) != count:
            raise ValueError(f"{path} does not hold {count} entries")
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place):
        return self._entries[place]

    @cached_property
    def _entries(self) -> tuple[QuarantinedLine, ...]:
        return tuple(QuarantinedLine.from_json(line) for line in self._content.tobytes().decode().splitlines())


class IndexBuilder:
    """Builds the columns sample by sample."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._media: list[tuple[int, int]] = []
        self._rates: dict[float, int] = {}
        self._ranges: list[tuple[int, int, int]] = []
        self._shapes: list[str] = []
        self._quarantined: list[QuarantinedLine] = []
        self._unused: Counter[str] = Counter()

    def add(self, place: Place, names: int, text_tokens: int, facts: MediaFacts, unused: Sequence[str] = ()) -> None:
        """Add a usable sample; `names` is the hash of its media names, `unused` the values that it leaves out."""
        for name in unused:
            known = name[:MAX_NAME] in self._unused or len(self._unused) < MAX_UNUSED_NAMES
            self._unused[name[:MAX_NAME] if known else OTHER_NAMES] += 1
        self._media += [(picture.width, picture.height) for picture in facts.pictures]
        for video in facts.videos:
            kind = FRAME_FOLDER if video.is_folder else VIDEO_FILE
            rate = self._rates.setdefault(video.fps, len(self._rates))
            self._media.append((kind << KIND_BITS | min(video.num_frames, EXTENT), rate))
        self._ranges += [(offset, len(self._rows), size) for offset, size in place.more]
        self._rows.append((place.offset, names, place.size, place.line, text_tokens, len(self._media)))
        self._shapes.append(place.shape)

    def quarantine(self, entry: QuarantinedLine) -> None:
        """Add a sample that cannot be used."""
        self._quarantined.append(entry)

    def index(self) -> FileIndex:
        """The index of all that was added."""
        return FileIndex(
            np.array(self._rows, ROW),
            np.array(self._media, MEDIA_ROW),
            np.array(list(self._rates), np.float64),
            tuple(self._quarantined),
            dict(self._unused),
            np.array(self._ranges, RANGE_ROW),
            *_numbered_shapes(self._shapes),
        )


def sum_unused(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sum counts of unused values by name: the most frequent names first, and all names beyond the limit together."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    others = total.pop(OTHER_NAMES, 0)
    ranked = sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))
    others += sum(count for _, count in ranked[MAX_UNUSED_NAMES:])
    return {**dict(ranked[:MAX_UNUSED_NAMES]), **({OTHER_NAMES: others} if others else {})}


def join_parts(parts: Sequence[tuple[FileIndex, int]]) -> FileIndex:
    """The index of a file from those of its parts in order, each with the number of lines before it."""
    rates = np.unique(np.concatenate([np.zeros(0), *(part.rates for part, _ in parts)]))
    rows, media, quarantined, ranges = [np.zeros(0, ROW)], [np.zeros(0, MEDIA_ROW)], [], [np.zeros(0, RANGE_ROW)]
    media_before = rows_before = 0
    for part, lines_before in parts:
        own = part.rows.copy()
        own["line"] += lines_before
        own["media_end"] += media_before
        rows.append(own)
        media.append(_with_rates(part, rates))
        ranges.append(part.ranges.copy())
        ranges[-1]["row"] += rows_before
        media_before += len(part.media)
        rows_before += len(part)
        quarantined += [dataclasses.replace(entry, line=entry.line + lines_before) for entry in part.quarantined]
    unused = sum_unused(part.unused for part, _ in parts)
    columns = np.concatenate(rows), np.concatenate(media), rates, tuple(quarantined), unused, np.concatenate(ranges)
    return FileIndex(*columns, *_joined_shapes([part for part, _ in parts]))


def _numbered_shapes(shapes: Sequence[str]) -> Shapes:
    """The columns of the shapes of samples."""
    distinct = sorted(set(shapes))
    numbers = {shape: number for number, shape in enumerate(distinct)}
    return _unless_empty(np.array(distinct, "S"), np.array([numbers[shape] for shape in shapes], np.uint32))


def _joined_shapes(parts: Sequence[FileIndex]) -> Shapes:
    """The columns of all samples of parts; a shape is looked up once for each part, not for each sample."""
    known = [part.shapes if len(part.shapes) else NO_SHAPE for part in parts]
    distinct = np.unique(np.concatenate([NO_SHAPES, *known]))
    numbers = [np.zeros(0, np.uint32)]
    for part, shapes in zip(parts, known):
        own = part.shape_numbers if len(part.shapes) else np.zeros(len(part), np.uint32)
        numbers.append(np.searchsorted(distinct, shapes).astype(np.uint32)[own])
    return _unless_empty(distinct, np.concatenate(numbers))


def _sliced_shapes(index: FileIndex, rows: range) -> Shapes:
    """The columns of some samples, without the shapes of others."""
    used, numbers = np.unique(index.shape_numbers[rows.start : rows.stop], return_inverse=True)
    return _unless_empty(index.shapes[used], numbers.astype(np.uint32))


def _unless_empty(distinct: np.ndarray, numbers: np.ndarray) -> Shapes:
    """The columns; nothing if all shapes are empty."""
    return (distinct, numbers) if distinct.any() else (NO_SHAPES, np.zeros(0, np.uint32))


def _with_rates(part: FileIndex, rates: np.ndarray) -> np.ndarray:
    """The media of a part with their frame rates as indices into `rates`, ascending, which holds all of the part's."""
    media = part.media.copy()
    videos = media["extent"] >> KIND_BITS != PICTURE
    media["detail"][videos] = np.searchsorted(rates, part.rates[media["detail"][videos]])
    return media


def slice_index(index: FileIndex, rows: range, lines: range, unused: Mapping[str, int]) -> FileIndex:
    """The index of a part from that of its file, with lines counted from 1: the inverse of `join_parts`.

    lines: numbers of all lines of the part, those of quarantined samples included. unused: counts of the part.
    """
    own = index.rows[rows.start : rows.stop].copy()
    ends = index.rows["media_end"]
    first = int(ends[rows.start - 1]) if rows.start else 0
    end = int(own["media_end"][-1]) if len(own) else first
    own["media_end"] -= first
    own["line"] -= lines.start - 1
    bounds = (
        bisect.bisect_left(index.quarantined, line, key=lambda entry: entry.line) for line in (lines.start, lines.stop)
    )
    quarantined = tuple(
        dataclasses.replace(entry, line=entry.line - lines.start + 1) for entry in index.quarantined[slice(*bounds)]
    )
    ranges = _ranges_of(index, rows).copy()
    ranges["row"] -= rows.start
    media = np.asarray(index.media[first:end])
    return FileIndex(own, media, index.rates, quarantined, unused, ranges, *_sliced_shapes(index, rows))


def _ranges_of(index: FileIndex, rows: range) -> np.ndarray:
    """The further ranges of some samples."""
    numbers = index.ranges["row"]
    return index.ranges[bisect.bisect_left(numbers, rows.start) : bisect.bisect_left(numbers, rows.stop)]
