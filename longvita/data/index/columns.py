"""The columns of an index: 32 bytes a sample and 8 for each of its pictures and videos, mapped from disk.

Mapped read-only, so a file of 17 million samples opens at once and the ranks of a machine share its pages.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longvita.data.formats.base import Place
from longvita.data.media.item import MediaFacts, PictureFacts
from longvita.data.media.video import VideoFacts
from longvita.data.quarantine import QuarantinedSample

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
"""A sample: its Place, a hash of its media's names, its tokens without tiles, the end of its rows of media."""
MEDIUM = np.dtype([("extent", "<u4"), ("detail", "<u4")])
"""A picture: width and height, pixels. A video: its kind and number of frames, and the number of its frame rate."""
KIND_BITS = 30
"""Bits of an extent below its kind."""
EXTENT = (1 << KIND_BITS) - 1
LEAST_MAPPED = 64 << 10
"""Bytes of a file of the index that is mapped and not read."""
PICTURE, VIDEO_FILE, FRAME_FOLDER = 0, 1, 2


@dataclass(frozen=True)
class FileIndex:
    """The samples of one data file that can be used, and the others' entries for the quarantine file."""

    rows: np.ndarray
    """[n] ROW."""
    media: np.ndarray
    """[m] MEDIUM, in the order of the samples, of each its pictures first."""
    rates: np.ndarray
    """[r] float64, the frame rates of the file's videos, each once, 1/s."""
    broken: Sequence[QuarantinedSample]
    """Samples that cannot be used, by their lines."""

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, number: int) -> Place:
        """Where a sample lies in its file."""
        row = self.rows[number]
        return Place(int(row["offset"]), int(row["size"]), int(row["line"]))

    def media_starts(self) -> np.ndarray:
        """[n + 1] int64, each sample's first row of `media`."""
        return np.concatenate([[0], self.rows["media_end"]]).astype(np.int64)

    def facts(self, number: int) -> MediaFacts:
        """What the headers of one sample's media told."""
        start = int(self.rows["media_end"][number - 1]) if number else 0
        rows = self.media[start : int(self.rows["media_end"][number])]
        kinds = rows["extent"] >> KIND_BITS
        pictures = [PictureFacts(int(row["extent"]), int(row["detail"])) for row in rows[kinds == PICTURE]]
        return MediaFacts(tuple(pictures), tuple(self.video(row) for row in rows[kinds != PICTURE]))

    def video(self, row: np.void) -> VideoFacts:
        """What the header of a video told, from its row of `media`."""
        extent = int(row["extent"])
        rate = float(self.rates[int(row["detail"])])
        return VideoFacts(extent & EXTENT, rate, extent >> KIND_BITS == FRAME_FOLDER)


class IndexBuilder:
    """Gathers the columns sample by sample."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._media: list[tuple[int, int]] = []
        self._rates: dict[float, int] = {}
        self._broken: list[QuarantinedSample] = []

    def add(self, place: Place, names: int, text_tokens: int, facts: MediaFacts) -> None:
        """A sample that can be used."""
        self._media += [(picture.width, picture.height) for picture in facts.pictures]
        for video in facts.videos:
            kind = FRAME_FOLDER if video.is_folder else VIDEO_FILE
            rate = self._rates.setdefault(video.fps, len(self._rates))
            self._media.append((kind << KIND_BITS | min(video.num_frames, EXTENT), rate))
        self._rows.append((place.offset, names, place.size, place.line, text_tokens, len(self._media)))

    def quarantined(self, entry: QuarantinedSample) -> None:
        """A sample that can't."""
        self._broken.append(entry)

    def index(self) -> FileIndex:
        """All that was added."""
        return FileIndex(
            np.array(self._rows, ROW),
            np.array(self._media, MEDIUM),
            np.array(list(self._rates), np.float64),
            tuple(self._broken),
        )


def join(pieces: Sequence[tuple[FileIndex, int]]) -> FileIndex:
    """One index of the pieces of a file, each with the number of lines before it."""
    rates = np.unique(np.concatenate([np.zeros(0), *(piece.rates for piece, _ in pieces)]))
    rows, media, broken = [np.zeros(0, ROW)], [np.zeros(0, MEDIUM)], []
    first_medium = 0
    for piece, lines_before in pieces:
        own = piece.rows.copy()
        own["line"] += lines_before
        own["media_end"] += first_medium
        rows.append(own)
        media.append(renumbered(piece, rates))
        first_medium += len(piece.media)
        broken += [dataclasses.replace(entry, line=entry.line + lines_before) for entry in piece.broken]
    return FileIndex(np.concatenate(rows), np.concatenate(media), rates, tuple(broken))


def renumbered(piece: FileIndex, rates: np.ndarray) -> np.ndarray:
    """A piece's media with the numbers that its rates have among `rates`, ascending, which holds them all."""
    media = piece.media.copy()
    videos = media["extent"] >> KIND_BITS != PICTURE
    media["detail"][videos] = np.searchsorted(rates, piece.rates[media["detail"][videos]])
    return media


def piece_of(index: FileIndex, rows: range, lines: range) -> FileIndex:
    """The inverse of `join`: some rows of an index as a piece of its own, with lines counted from 1 in it.

    `lines`: the numbers of all lines that the piece covers, those set aside among them.
    """
    own = index.rows[rows.start : rows.stop].copy()
    starts = index.rows["media_end"]
    first = int(starts[rows.start - 1]) if rows.start else 0
    end = int(own["media_end"][-1]) if len(own) else first
    own["media_end"] -= first
    own["line"] -= lines.start - 1
    first_entry, end_entry = (
        bisect.bisect_left(index.broken, line, key=lambda entry: entry.line) for line in (lines.start, lines.stop)
    )
    broken = tuple(
        dataclasses.replace(entry, line=entry.line - lines.start + 1) for entry in index.broken[first_entry:end_entry]
    )
    return FileIndex(own, np.asarray(index.media[first:end]), index.rates, broken)
