"""Pictures and videos of a sample: their headers, their number of tiles, and decoding of some of those tiles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from longvita.data.errors import MediaError, Reason
from longvita.data.media.frame_cache import FrameCache
from longvita.data.media.image import (
    Grid,
    check_size_as_indexed,
    choose_grid,
    cut_tiles,
    open_picture,
    probe_picture,
    square_tile,
    to_upright_rgb,
    upright_size,
)
from longvita.data.media.media_file import FileIdentity, Heartbeat, MediaFile
from longvita.data.media.video import STALL_SECONDS, VideoFacts, count_frames, probe_video, read_frames, selected_frames

PromptPicture = str | os.PathLike | Image.Image
"""A picture of a prompt: its path, or the decoded picture."""
PictureSource = PromptPicture | MediaFile
MAX_DECODED_TILES = 64
"""Tiles decoded and dropped together by a check, which limits its memory."""


@dataclass(frozen=True)
class MediaSettings:
    """How pictures and videos are cut into tiles."""

    image_size: int = 448
    """Side of a tile, pixels."""
    max_num_tiles: int = 12
    """Most tiles of a picture, without its thumbnail."""
    max_num_frames: int = 64
    """Most frames sampled from one video."""
    max_fps: float = 1.0
    """Most frames sampled from one second of video, 1/s."""
    stall_seconds: float = STALL_SECONDS
    """Longest wait for one frame of a video, seconds."""
    decode_threads: int = 1
    """Threads of the decoder of one video file."""
    reduced_jpeg: bool = False
    """Whether a JPEG file is decoded at 1/2, 1/4 or 1/8 of its size if its tiles need no more."""
    frame_cache: str | None = None
    """Folder of the cache of decoded frames; no cache when absent."""
    frame_cache_bytes: int = 0
    """Most bytes of that cache."""


@dataclass(frozen=True)
class PictureFacts:
    """Size of an upright picture, pixels."""

    width: int
    height: int

    def grid(self, settings: MediaSettings) -> Grid:
        """The tile grid of the picture."""
        return choose_grid(self.width, self.height, settings.max_num_tiles, settings.image_size)


@dataclass(frozen=True)
class MediaFacts:
    """The headers of a sample's pictures and videos."""

    pictures: tuple[PictureFacts, ...] = ()
    videos: tuple[VideoFacts, ...] = ()

    def grids(self, settings: MediaSettings) -> list[Grid]:
        """The tile grid of each picture."""
        return [picture.grid(settings) for picture in self.pictures]

    def frame_counts(self, settings: MediaSettings, max_num_frames: int | None = None) -> list[int]:
        """Number of frames sampled from each video, at most `max_num_frames` (default: the settings')."""
        limit = settings.max_num_frames if max_num_frames is None else max_num_frames
        return [count_frames(video, settings.max_fps, limit) for video in self.videos]


def probe_media(pictures: Sequence[PictureSource], videos: Sequence[MediaFile], max_fps: float) -> MediaFacts:
    """Read the headers of a sample's media files. Raises MediaError for the first one that is missing or broken."""
    sizes = [upright_size(source) if isinstance(source, Image.Image) else probe_picture(source) for source in pictures]
    facts = MediaFacts(tuple(PictureFacts(*size) for size in sizes), tuple(map(probe_video, videos)))
    for path, video in zip(videos, facts.videos):
        if count_frames(video, max_fps, 1) == 0:
            detail = f"has no frame to sample at {max_fps}/s: it has {video.num_frames} at {video.fps}/s"
            raise MediaError(Reason.BROKEN_VIDEO, f"video {path} {detail}")
    return facts


@dataclass(frozen=True)
class PictureItem:
    """One picture of a sample."""

    source: PictureSource
    """A media file, or a decoded picture."""
    facts: PictureFacts
    """Its header when the sample was measured."""

    def num_tiles(self, settings: MediaSettings, max_num_frames: int) -> int:
        """Number of its tiles."""
        return self.facts.grid(settings).num_tiles

    def decode(
        self, settings: MediaSettings, max_num_frames: int, wanted: Sequence[int], heartbeat: Heartbeat, out: np.ndarray
    ) -> None:
        """Decode the tiles `wanted` into `out`, uint8 [k, S, S, 3]. Raises MediaError."""
        cut_tiles(self._picture(settings), self.facts.grid(settings), settings.image_size, wanted, out)

    def _picture(self, settings: MediaSettings) -> Image.Image:
        """The upright picture; a JPEG may be decoded at a reduced size not below that of its grid."""
        indexed = (self.facts.width, self.facts.height)
        if isinstance(self.source, Image.Image):
            check_size_as_indexed(upright_size(self.source), indexed)
            return to_upright_rgb(self.source)
        grid, size = self.facts.grid(settings), settings.image_size
        enough = (grid.columns * size, grid.rows * size) if settings.reduced_jpeg else None
        return open_picture(self.source, indexed, enough)


@dataclass(frozen=True)
class VideoItem:
    """One video of a sample: a file or a folder of frames."""

    source: MediaFile
    """The media file or folder."""
    facts: VideoFacts
    """Its header when the sample was measured."""

    def num_tiles(self, settings: MediaSettings, max_num_frames: int) -> int:
        """Number of its sampled frames."""
        return count_frames(self.facts, settings.max_fps, max_num_frames)

    def decode(
        self, settings: MediaSettings, max_num_frames: int, wanted: Sequence[int], heartbeat: Heartbeat, out: np.ndarray
    ) -> None:
        """Decode the sampled frames with numbers `wanted` into `out`, uint8 [k, S, S, 3]. Raises MediaError."""
        selected = selected_frames(self.facts, settings.max_fps, max_num_frames)
        frames = [selected[number] for number in wanted]
        cache = self._cache(settings)
        missing = list(range(len(frames))) if cache is None else cache.load(frames, out)
        pictures = read_frames(
            self.source, [frames[slot] for slot in missing], settings.stall_seconds, heartbeat, settings.decode_threads
        )
        for slot, picture in zip(missing, pictures, strict=True):
            out[slot] = square_tile(picture, settings.image_size)
            if cache is not None:
                cache.store(frames[slot], out[slot])

    def _cache(self, settings: MediaSettings) -> FrameCache | None:
        """The cached frames of this video; None without a cache, for folders, and if the file does not exist."""
        if settings.frame_cache is None or self.facts.is_folder:
            return None
        try:
            identity = FileIdentity.of(self.source)
        except OSError:
            return None
        return FrameCache(Path(settings.frame_cache), settings.frame_cache_bytes, identity, settings.image_size)


MediaItem = PictureItem | VideoItem


def order_media(
    is_video: Sequence[bool], pictures: Sequence[PictureSource], videos: Sequence[MediaFile], facts: MediaFacts
) -> list[MediaItem]:
    """Order the media of a sample by its marks; `is_video` says for each mark whether it is that of a video."""
    picture_items = map(PictureItem, pictures, facts.pictures)
    video_items = map(VideoItem, videos, facts.videos)
    return [next(video_items) if video else next(picture_items) for video in is_video]


def decode_tiles(
    items: Sequence[MediaItem],
    settings: MediaSettings,
    max_num_frames: int,
    wanted: Sequence[int],
    heartbeat: Heartbeat = lambda: None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decode the tiles `wanted` of a sample: uint8 [k, S, S, 3], in `out` if it is given.

    Tiles are numbered over all media of a sample, and `wanted` is ascending. A picture or video without a wanted tile
    is not opened, and of a video only the packets for wanted frames are decoded. `heartbeat` is called at each step of
    progress. Raises MediaError.
    """
    size = settings.image_size
    tiles = np.empty((len(wanted), size, size, 3), np.uint8) if out is None else out
    first = slot = 0
    for item in items:
        count = item.num_tiles(settings, max_num_frames)
        own = [number - first for number in wanted if first <= number < first + count]
        if own:
            heartbeat()
            item.decode(settings, max_num_frames, own, heartbeat, tiles[slot : slot + len(own)])
        first, slot = first + count, slot + len(own)
    return tiles
