"""Pictures and videos of a sample: their headers, their number of tiles, and decoding of some of those tiles."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from longvita.data.errors import MediaError, Reason
from longvita.data.media.facts_store import Facts, FactsStore
from longvita.data.media.frame_cache import FrameCache
from longvita.data.media.image import Grid, choose_grid, cut_tiles, square_tile
from longvita.data.media.media_file import FileIdentity, Heartbeat, MediaFile
from longvita.data.media.packet_store import PacketStore
from longvita.data.media.pictures.picture_file import check_size_as_indexed, open_picture, probe_picture
from longvita.data.media.pictures.upright import to_upright_rgb, upright_size
from longvita.data.media.pyav_reader import Damage
from longvita.data.media.video import (
    STALL_SECONDS,
    FrameSampling,
    Times,
    VideoFacts,
    count_frames,
    frame_times,
    no_frame,
    probe_video,
    rate_of_folder,
    read_frames,
    selected_frames,
)
from longvita.errors import shorten

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
    frame_sampling: FrameSampling = "published"
    """Rule by which frames are sampled from a video."""
    max_damaged_share: float = 0.05
    """A damaged frame is replaced by the nearest intact one, if that is at most this share of the frames away."""
    packet_tables: str | None = None
    """Folder of the packet tables of video files; they are not stored when absent."""

    @property
    def packet_store(self) -> PacketStore | None:
        """The store of packet tables."""
        return PacketStore(Path(self.packet_tables)) if self.packet_tables is not None else None


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


def probe_media(
    pictures: Sequence[PictureSource],
    videos: Sequence[MediaFile],
    max_fps: float | None,
    folder_fps: float | None = None,
    store: PacketStore | None = None,
    known: FactsStore | None = None,
) -> MediaFacts:
    """Read the headers of a sample's media files. Raises MediaError for the first one that is missing or broken.

    max_fps: rate at which each video must have a frame, 1/s; any rate when None. folder_fps, store: as for
    `probe_video`. known: a file of which the facts are there is not opened, and those of the others are added.
    """
    sizes = tuple(_picture_facts(picture, known) for picture in pictures)
    facts = MediaFacts(sizes, tuple(_video_facts(video, folder_fps, store, known) for video in videos))
    for path, video in zip(videos, facts.videos):
        if max_fps is not None and count_frames(video, max_fps, 1) == 0:
            raise MediaError(Reason.BROKEN_VIDEO, f"video {shorten(path)} has {no_frame(video, max_fps)}")
    return facts


def _picture_facts(source: PictureSource, known: FactsStore | None) -> PictureFacts:
    if isinstance(source, Image.Image):
        return PictureFacts(*upright_size(source))
    return PictureFacts(*(probe_picture(source) if known is None else known.of("picture", source, probe_picture)))


def _video_facts(
    source: MediaFile, folder_fps: float | None, store: PacketStore | None, known: FactsStore | None
) -> VideoFacts:
    if known is None:
        return probe_video(source, store, folder_fps)

    def read(source: MediaFile) -> Facts:
        facts = probe_video(source, store, folder_fps)
        return facts.num_frames, None if facts.is_folder else facts.fps

    num_frames, fps = known.of("video", source, read)
    if fps is None:
        return VideoFacts(num_frames, rate_of_folder(source, folder_fps), is_folder=True)
    return VideoFacts(num_frames, fps)


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
    ) -> int:
        """Decode the tiles `wanted` into `out`, uint8 [k, S, S, 3]; no frame is replaced. Raises MediaError."""
        cut_tiles(self._picture(settings), self.facts.grid(settings), settings.image_size, wanted, out)
        return 0

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
    ) -> int:
        """Decode the sampled frames with numbers `wanted` into `out`, uint8 [k, S, S, 3].

        Returns how many of them are damaged and were replaced. Raises MediaError.
        """
        selected = self.frames(settings, max_num_frames)
        frames = [selected[number] for number in wanted]
        cache, damage = self._cache(settings), Damage(settings.max_damaged_share)
        missing = list(range(len(frames))) if cache is None else cache.load(frames, out)
        pictures = read_frames(
            self.source,
            [frames[slot] for slot in missing],
            settings.stall_seconds,
            heartbeat,
            settings.decode_threads,
            damage,
            settings.packet_store,
        )
        for slot, picture in zip(missing, pictures, strict=True):
            out[slot] = square_tile(picture, settings.image_size)
            if cache is not None and frames[slot] not in damage.replaced:
                cache.store(frames[slot], out[slot])
        return sum(frame in damage.replaced for frame in frames)

    def frames(self, settings: MediaSettings, max_num_frames: int) -> list[int]:
        """The frames that are sampled from the video. Raises MediaError if they depend on times that can't be read."""
        times: Times = ()
        if settings.frame_sampling == "time" and not self.facts.is_folder:
            times = frame_times(self.source, self.facts, settings.packet_store)
        return selected_frames(self.facts, settings.max_fps, max_num_frames, settings.frame_sampling, times)

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
    on_replaced: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Decode the tiles `wanted` of a sample: uint8 [k, S, S, 3], in `out` if it is given.

    Tiles are numbered over all media of a sample, and `wanted` is ascending. A picture or video without a wanted tile
    is not opened, and of a video only the packets for wanted frames are decoded. `heartbeat` is called at each step of
    progress, `on_replaced` with the number of damaged frames that were replaced by others. Raises MediaError.
    """
    size = settings.image_size
    tiles = np.empty((len(wanted), size, size, 3), np.uint8) if out is None else out
    first = slot = 0
    for item in items:
        count = item.num_tiles(settings, max_num_frames)
        own = [number - first for number in wanted if first <= number < first + count]
        if own:
            heartbeat()
            on_replaced(item.decode(settings, max_num_frames, own, heartbeat, tiles[slot : slot + len(own)]))
        first, slot = first + count, slot + len(own)
    return tiles
