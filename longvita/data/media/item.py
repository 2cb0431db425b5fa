"""Pictures and videos of a sample: what their headers tell, the tiles they give, and decoding some of those tiles."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from longvita.data.errors import MediaError, Reason
from longvita.data.media.frame_cache import FileFrames, FrameCache
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
from longvita.data.media.source import MediaFile
from longvita.data.media.video import STALL_SECONDS, VideoFacts, count_frames, probe_video, read_frames, selected_frames

MediaSource = str | os.PathLike | Image.Image
"""A picture of a prompt: its path, or the picture itself."""
PictureSource = MediaSource | MediaFile
DECODED_AT_ONCE = 64
"""Tiles that are decoded and dropped together where they are only looked at: what bounds memory."""


@dataclass(frozen=True)
class MediaSettings:
    """How pictures and videos are cut into tiles."""

    image_size: int = 448
    """Side of a tile, pixels."""
    max_num_tiles: int = 12
    """Most tiles a picture is cut into, its thumbnail not counted."""
    max_num_frames: int = 64
    """Most frames taken from one video."""
    max_fps: float = 1.0
    """Most frames taken from one second of video, 1/s."""
    stall_seconds: float = STALL_SECONDS
    """Longest wait for one frame of a video, seconds."""
    decode_threads: int = 1
    """Threads of the decoder of a video file."""
    reduced_jpeg: bool = False
    """Whether a JPEG file is read at a half, a quarter or an eighth of its size where its tiles need no more."""
    frame_cache: str | None = None
    """Folder of the cache of decoded frames; none when absent."""
    frame_cache_bytes: int = 0
    """Most bytes of that cache."""


@dataclass(frozen=True)
class PictureFacts:
    """Size of an upright picture, pixels."""

    width: int
    height: int

    def grid(self, settings: MediaSettings) -> Grid:
        """How the picture is cut."""
        return choose_grid(self.width, self.height, settings.max_num_tiles, settings.image_size)


@dataclass(frozen=True)
class MediaFacts:
    """What the headers of a sample's pictures and videos tell."""

    pictures: tuple[PictureFacts, ...] = ()
    videos: tuple[VideoFacts, ...] = ()

    def grids(self, settings: MediaSettings) -> list[Grid]:
        """How each picture is cut."""
        return [picture.grid(settings) for picture in self.pictures]

    def frame_counts(self, settings: MediaSettings, max_num_frames: int | None = None) -> list[int]:
        """Frames taken from each video, at most `max_num_frames` (default: the settings')."""
        limit = settings.max_num_frames if max_num_frames is None else max_num_frames
        return [count_frames(video, settings.max_fps, limit) for video in self.videos]


def probe_media(pictures: Sequence[PictureSource], videos: Sequence[MediaFile], max_fps: float) -> MediaFacts:
    """Reads the headers of a sample's media. Raises MediaError for the first one that is missing or broken."""
    facts = MediaFacts(
        tuple(PictureFacts(*_picture_size(source)) for source in pictures),
        tuple(probe_video(path) for path in videos),
    )
    for path, video in zip(videos, facts.videos):
        if count_frames(video, max_fps, 1) == 0:
            raise MediaError(
                Reason.BROKEN_VIDEO,
                f"video {path} gives no frame at {max_fps}/s: it has {video.num_frames} at {video.fps}/s",
            )
    return facts


def _picture_size(source: PictureSource) -> tuple[int, int]:
    return upright_size(source) if isinstance(source, Image.Image) else probe_picture(source)


@dataclass(frozen=True)
class PictureItem:
    """One picture of a sample."""

    source: PictureSource
    """What is opened, or a picture in memory."""
    facts: PictureFacts
    """What its header told when the sample was measured."""

    def num_tiles(self, settings: MediaSettings, max_num_frames: int) -> int:
        """Tiles that it gives."""
        return self.facts.grid(settings).num_tiles

    def decode(
        self,
        settings: MediaSettings,
        max_num_frames: int,
        wanted: Sequence[int],
        beat: Callable[[], None],
        out: np.ndarray,
    ) -> None:
        """Its tiles `wanted` into `out`, uint8 [k, S, S, 3]. Raises MediaError."""
        cut_tiles(self._picture(settings), self.facts.grid(settings), settings.image_size, wanted, out)

    def _picture(self, settings: MediaSettings) -> Image.Image:
        """The upright picture, perhaps read at a reduced size that still has a pixel for each one of its grid."""
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
    """What is opened."""
    facts: VideoFacts
    """What its header told when the sample was measured."""

    def num_tiles(self, settings: MediaSettings, max_num_frames: int) -> int:
        """Frames that it gives."""
        return count_frames(self.facts, settings.max_fps, max_num_frames)

    def decode(
        self,
        settings: MediaSettings,
        max_num_frames: int,
        wanted: Sequence[int],
        beat: Callable[[], None],
        out: np.ndarray,
    ) -> None:
        """Its frames `wanted`, counted among the chosen ones, into `out`, uint8 [k, S, S, 3]. Raises MediaError."""
        chosen = selected_frames(self.facts, settings.max_fps, max_num_frames)
        frames = [chosen[number] for number in wanted]
        cache = self._cache(settings)
        missing = list(range(len(frames))) if cache is None else cache.load(frames, out)
        pictures = read_frames(
            self.source, [frames[slot] for slot in missing], settings.stall_seconds, beat, settings.decode_threads
        )
        for slot, picture in zip(missing, pictures, strict=True):
            out[slot] = square_tile(picture, settings.image_size)
            if cache is not None:
                cache.store(frames[slot], out[slot])

    def _cache(self, settings: MediaSettings) -> FileFrames | None:
        """What the cache of decoded frames holds of this video, if there is a cache; folders have none."""
        if settings.frame_cache is None or self.facts.is_folder:
            return None
        cache = FrameCache(Path(settings.frame_cache), settings.frame_cache_bytes)
        return cache.of_file(self.source, settings.image_size)


MediaItem = PictureItem | VideoItem


def order_media(
    is_video: Sequence[bool], pictures: Sequence[PictureSource], videos: Sequence[MediaFile], facts: MediaFacts
) -> list[MediaItem]:
    """The media of a sample in the order of its marks; `is_video` tells for each mark whether it is a video's."""
    picture_items = map(PictureItem, pictures, facts.pictures)
    video_items = map(VideoItem, videos, facts.videos)
    return [next(video_items) if video else next(picture_items) for video in is_video]


def decode_tiles(
    items: Sequence[MediaItem],
    settings: MediaSettings,
    max_num_frames: int,
    wanted: Sequence[int],
    beat: Callable[[], None] = lambda: None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Pixels of the tiles `wanted` of a sample: uint8 [k, S, S, 3], in `out` if it is given.

    A sample's tiles are numbered through all its media; `wanted` ascends. A picture or video without a wanted tile is
    not opened, and of a video only the wanted frames are decoded. `beat` is called at each sign of life.
    Raises MediaError.
    """
    size = settings.image_size
    tiles = np.empty((len(wanted), size, size, 3), np.uint8) if out is None else out
    first = slot = 0
    for item in items:
        count = item.num_tiles(settings, max_num_frames)
        own = [number - first for number in wanted if first <= number < first + count]
        if own:
            beat()
            item.decode(settings, max_num_frames, own, beat, tiles[slot : slot + len(own)])
        first, slot = first + count, slot + len(own)
    return tiles
