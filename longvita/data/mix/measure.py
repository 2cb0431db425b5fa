"""The lengths of a file's samples for one run: its template, tile size, frame limit and sequence length.

A sample whose videos make it longer than a sequence gets the largest frame limit at which it fits. One that is too long
even at one frame per video is quarantined, and so is one with a folder of frames that is too short for one frame at the
run's rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longvita.data.chat_template import ChatTemplate
from longvita.data.errors import Reason
from longvita.data.index.columns import EXTENT, FRAME_FOLDER, KIND_BITS, PICTURE, FileIndex
from longvita.data.media.image import choose_grid
from longvita.data.media.item import MediaFacts, MediaSettings
from longvita.data.media.video import count_frames, max_frames_that_fit, no_frame
from longvita.data.quarantine import QuarantinedLine


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
    unusable: tuple[QuarantinedLine, ...]
    """The other samples, in the order of their lines."""


def measure(index: FileIndex, template: ChatTemplate, settings: MediaSettings, sequence_length: int) -> Measured:
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
    without_frame = _without_frame(index, settings)
    fits = (lengths <= sequence_length) & ~without_frame
    unusable = []
    for number in np.flatnonzero(~fits).tolist():
        if without_frame[number]:
            reason, detail = Reason.BROKEN_VIDEO, _which_video(index.facts(number), settings)
        else:
            reason, detail = Reason.TOO_LONG, _why(lengths[number], limits[number], settings, sequence_length)
        unusable.append(QuarantinedLine(int(index.rows["line"][number]), reason, detail))
    return Measured(lengths.astype(np.int32), tiles.astype(np.int32), limits, np.flatnonzero(fits), tuple(unusable))


def _without_frame(index: FileIndex, settings: MediaSettings) -> np.ndarray:
    """Whether each sample has a video of which no frame is sampled, bool [n]; only a folder of frames can be one."""
    folders = np.flatnonzero(index.media["extent"] >> KIND_BITS == FRAME_FOLDER)
    distinct, number = np.unique(index.media[folders].view("<u8"), return_inverse=True)
    videos = map(index.video, distinct.view(index.media.dtype))
    is_empty = np.array([count_frames(video, settings.max_fps, 1) == 0 for video in videos], bool)
    found = np.zeros(len(index), bool)
    found[np.searchsorted(index.rows["media_end"], folders[is_empty[number.ravel()]], side="right")] = True
    return found


def _which_video(facts: MediaFacts, settings: MediaSettings) -> str:
    number, video = next(pair for pair in enumerate(facts.videos, 1) if count_frames(pair[1], settings.max_fps, 1) == 0)
    return f"video {number} has {no_frame(video, settings.max_fps)}"


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
