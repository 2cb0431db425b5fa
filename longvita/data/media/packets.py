"""Open video files, and find which of their packets have to be decoded for some of the frames.

The table of a film's packets gives the time of each frame that a player shows and the key frames. The packets to decode
for a frame are those from the key frame before it up to the frame itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from longvita.data.errors import MediaError, Reason
from longvita.data.media.media_file import MediaFile, opened

SEEK_PACKETS = 12
"""A seek to a key frame costs about as much as decoding this number of frames."""
VIDEO_FORMATS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif", "mxf", "rm"),
    *("h264", "hevc", "mpegvideo", "m4v", "ivf", "dv", "swf", "vob", "apng", "nut", "wtv"),
)
"""FFmpeg's names of the formats that are read: formats that contain their frames themselves. FFmpeg detects the format
by the content of a file: a playlist (hls, concat, dash) with the name of a video would make it open any other file or
address."""
PICTURE_CODECS = ("mjpeg", "png", "bmp", "gif", "webp", "tiff", "jpegls", "jpeg2000")
"""Codecs of streams that may be a still picture next to a film."""
COVERS = 0x400 | 0x800
"""FFmpeg's bits of a stream of attached pictures (attached_pic) or of pictures of moments (timed_thumbnails)."""
KEY, SHOWN = 1, 2
"""Bits of a packet: a decoder can start with it; a player shows its frame."""


@dataclass(frozen=True)
class PacketTable:
    """The packets of a film in decoding order. Its frames are those that a player shows, ordered by their times."""

    stamps: np.ndarray
    """[n] int64, presentation time stamp of each packet's frame, in units of `time_base`. They continue where the clock
    of the file starts again. Without time stamps in the file: the numbers of the frames."""
    bits: np.ndarray
    """[n] uint8, KEY and SHOWN of each packet."""
    time_base: float
    """Seconds of one unit of `stamps`."""
    restarts: tuple[int, ...] = ()
    """Packets with which the clock of the file starts again, as where two recordings were joined."""
    has_stamps: bool = True
    """Whether the file has a usable time stamp for each frame; frames are counted as they are decoded otherwise."""
    promised: int = 0
    """Frames in the file by its header, if that counts them."""
    last_decoded: int | None = None
    """Decoding time stamp of the last packet: a lost frame is shown after it. None if no packet is lost."""

    @cached_property
    def order(self) -> np.ndarray:
        """[k] int64, the packet of each frame."""
        shown = np.flatnonzero(self.bits & SHOWN)
        return shown[np.argsort(self.stamps[shown], kind="stable")]

    @cached_property
    def keys(self) -> np.ndarray:
        """[k] int64, the packets that a decoder can start with, ascending."""
        return np.flatnonzero(self.bits & KEY)

    @cached_property
    def times(self) -> np.ndarray:
        """[k] float64, seconds from the first frame to each frame."""
        stamps = self.stamps[self.order]
        return (stamps - stamps[:1]) * self.time_base

    @cached_property
    def num_frames(self) -> int:
        """Frames whose number is certain: in a truncated file, those shown before any lost frame."""
        if self.last_decoded is None:
            return len(self.order)
        return int(np.searchsorted(self.stamps[self.order], self.last_decoded, side="right"))

    @property
    def total_frames(self) -> int:
        """Frames of the film, lost ones included."""
        return max(self.num_frames, self.promised)

    @cached_property
    def is_seekable(self) -> bool:
        """Whether a time stamp leads to one place in the file."""
        is_unique = bool((np.diff(self.stamps[self.order]) > 0).all())
        return self.has_stamps and not self.restarts and is_unique

    def key_before(self, packet: int) -> int:
        """The last key frame that is not shown after the frame of `packet`: no packet before it matters."""
        number = int(np.searchsorted(self.keys, packet, side="right")) - 1
        # A frame decoded after a key frame but shown before it may depend on the previous key frame.
        while number >= 0 and self.stamps[self.keys[number]] > self.stamps[packet]:
            number -= 1
        return int(self.keys[number]) if number >= 0 else 0

    def last_needed(self, packet: int) -> int:
        """The last time stamp of the frames that are decoded for the frame of `packet`, its own included."""
        return int(self.stamps[self.key_before(packet) : packet + 1].max())

    def start_of(self, packet: int) -> int:
        """The packet to start at to decode the frame of `packet`; without time stamps, frames are counted from 0 on."""
        return self.key_before(packet) if self.has_stamps else 0

    def end_of(self, start: int) -> int:
        """The packet after the last one that is decoded from the key frame `start` on."""
        number = int(np.searchsorted(self.keys, start, side="right"))
        end = int(self.keys[number]) if number < len(self.keys) else len(self.bits)
        while end < len(self.bits) and self.key_before(end) <= start:  # The next key frame is not, those behind may be.
            end += 1
        return end

    def mean_rate(self, header_rate: float | None) -> float:
        """Frames per second: the header's rate where the time stamps agree with it, else that of the time stamps."""
        times = self.times
        return agreed_rate(header_rate, len(times), float(times[-1]) if self.has_stamps and len(times) else 0.0)


def agreed_rate(header_rate: float | None, num_frames: int, seconds: float) -> float:
    """The rate of a film's header, if its frames from the first to the last take about as long, else their mean rate.

    seconds: from the first to the last frame, 0 if unknown. The header's rate is exact where both agree.
    """
    if num_frames < 2 or seconds <= 0:
        return header_rate or 1.0
    measured = (num_frames - 1) / seconds
    tolerance = 0.01 + 1 / num_frames
    return header_rate if header_rate and abs(header_rate / measured - 1) <= tolerance else measured


@dataclass
class Sweep:
    """Packets that are read without a seek."""

    start: int
    """First packet that is decoded."""
    end: int
    """Last packet."""
    frames: list[int] = field(default_factory=list)
    """Numbers of its wanted frames, ascending."""


def plan_sweeps(table: PacketTable, frames: Sequence[int]) -> list[Sweep]:
    """Plan the sweeps for frames with ascending numbers: read up to the next one, or seek where that costs less."""
    sweeps: list[Sweep] = []
    for frame in frames:
        packet = int(table.order[frame])
        start = table.start_of(packet)
        if not sweeps or (table.is_seekable and start - sweeps[-1].end > SEEK_PACKETS):
            sweeps.append(Sweep(start, packet))
        sweep = sweeps[-1]
        sweep.end = max(sweep.end, packet)
        sweep.frames.append(frame)
    return sweeps


@contextlib.contextmanager
def open_container(path: MediaFile, timeout: float) -> Iterator[Any]:
    """Open a video file as a PyAV container. Raises PyAV's errors, also for a format that is not in VIDEO_FORMATS.

    timeout: longest wait for the next bytes, seconds.
    """
    import av

    options = {"format_whitelist": ",".join(VIDEO_FORMATS)}
    # Errors are replaced because old titles are in Latin-1.
    with opened(path) as file, av.open(file, timeout=timeout, options=options, metadata_errors="replace") as container:
        yield container


def video_stream(container: Any) -> Any:
    """The film of an open file: its first video stream that is no attached picture, still pictures last.

    Raises MediaError if there is none.
    """
    films = [stream for stream in container.streams.video if not int(stream.disposition) & COVERS]
    if not films:
        cover = " but a cover picture" if container.streams.video else ""
        raise MediaError(Reason.BROKEN_VIDEO, f"has no video stream{cover}")
    return min(films, key=lambda stream: (decoder_name(stream) in PICTURE_CODECS, stream.index))


def decoder_name(stream: Any) -> str:
    """FFmpeg's name of a stream's decoder; empty if there is none."""
    return stream.codec_context.name if stream.codec_context else ""
