"""The lengths of a file's samples for one run: its template, tile size, frame limit and sequence length.

A sample whose videos make it longer than a sequence gets the largest frame limit at which it fits. One that is too long
even at one frame per video is quarantined.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longvita.data.chat_template import ChatTemplate
from longvita.data.errors import Reason
from longvita.data.index.columns import EXTENT, KIND_BITS, PICTURE, FileIndex
from longvita.data.media.image import choose_grid
from longvita.data.media.item import MediaSettings
from longvita.data.media.video import count_frames, max_frames_that_fit
from longvita.data.quarantine import QuarantinedSample


@dataclass(frozen=True)
class Measured:
    """The samples of one file, measured for one run."""

    lengths: np.ndarray
    """[n] int32, tokens of each sample at its frame limit."""
    tiles: np.ndarray
    """[n] int32, tiles and frames of each sample at its frame limit."""
    frame_limits: np.ndarray
    """[n] int32, frame limit of the videos of each sample."""
    usable: np.ndarray
    """[k] int64, numbers of the samples that fit a sequence."""
    too_long: tuple[QuarantinedSample, ...]
    """The other samples."""


def measure(
    index: FileIndex, template: ChatTemplate, settings: MediaSettings, sequence_length: int, source: str, path: str
) -> Measured:
    """Measure a file's samples."""
    text = index.rows["text_tokens"].astype(np.int64)
    picture_tokens, tiles, frames = count_media(index, template, settings)
    lengths = text + picture_tokens + frames * template.tokens_per_frame
    tiles = tiles + frames
    limits = np.full(len(index), settings.max_num_frames, np.int32)
    for number in np.flatnonzero((lengths > sequence_length) & (frames > 0)).tolist():
        still, facts = int(text[number] + picture_tokens[number]), index.facts(number)
        # The largest frame limit at which the sample fits.
        room = (sequence_length - still) // template.tokens_per_frame
        limit = max_frames_that_fit(facts.videos, settings.max_fps, settings.max_num_frames, room) or 1
        limits[number], fewer = limit, sum(facts.frame_counts(settings, limit))
        lengths[number] = still + fewer * template.tokens_per_frame
        tiles[number] += fewer - frames[number]
    fits = lengths <= sequence_length
    too_long = tuple(
        QuarantinedSample(source, path, line, Reason.TOO_LONG, _why(length, limit, settings, sequence_length))
        for line, length, limit in zip(index.rows["line"][~fits].tolist(), lengths[~fits], limits[~fits])
    )
    return Measured(lengths.astype(np.int32), tiles.astype(np.int32), limits, np.flatnonzero(fits), too_long)


def count_media(
    index: FileIndex, template: ChatTemplate, settings: MediaSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count for each sample, int64 [n] each: tokens of its pictures, their tiles, frames of its videos at the limit.

    Identical headers, which most are, are evaluated once.
    """
    distinct, number = np.unique(np.ascontiguousarray(index.media).view("<u8"), return_inverse=True)
    values = np.zeros((len(distinct), 3), np.int64)
    for slot, row in enumerate(distinct.view(index.media.dtype)):
        if int(row["extent"]) >> KIND_BITS == PICTURE:
            width, height = int(row["extent"]) & EXTENT, int(row["detail"])
            grid = choose_grid(width, height, settings.max_num_tiles, settings.image_size)
            values[slot] = template.picture_length(grid), grid.num_tiles, 0
        else:
            values[slot, 2] = count_frames(index.video(row), settings.max_fps, settings.max_num_frames)
    # Sums over each sample's rows as differences of cumulative sums, because a sample may have no rows.
    sums = np.concatenate([np.zeros((1, 3), np.int64), np.cumsum(values[number.ravel()], axis=0)])
    totals = np.diff(sums[index.media_starts()], axis=0)
    return totals[:, 0], totals[:, 1], totals[:, 2]


def _why(length: int, limit: int, settings: MediaSettings, sequence_length: int) -> str:
    at_one = " even at one frame per video" if limit == 1 and settings.max_num_frames > 1 else ""
    return f"{length} tokens do not fit data.sequence_length {sequence_length}{at_one}"
