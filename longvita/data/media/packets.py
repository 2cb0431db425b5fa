"""Open video files, and find which of their packets have to be decoded for some of the frames.

A pass over the packets, without decoding, gives the time of each frame and the key frames. The packets to decode for a
frame are those from the key frame before it up to the frame itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from longvita.data.errors import MediaError, Reason
from longvita.data.media.media_file import FileIdentity, Heartbeat, MediaFile, opened

SEEK_PACKETS = 12
"""A seek to a key frame costs about as much as decoding this number of frames."""
TABLES_KEPT = 16
"""Tables that are cached; an hour at 25 frames a second takes 2 MB."""
VIDEO_FORMATS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif", "mxf", "rm"),
    *("h264", "hevc", "mpegvideo", "m4v", "ivf", "dv", "swf", "vob", "apng", "nut", "wtv"),
)
"""FFmpeg's names of the formats that are read: formats that contain their frames themselves. FFmpeg detects the format
by the content of a file: a playlist (hls, concat, dash) with the name of a video would make it open any other file or
address."""

_tables: dict[FileIdentity, PacketTable] = {}


@dataclass(frozen=True)
class PacketTable:
    """The packets of a file in decoding order."""

    stamps: np.ndarray
    """[n] int64, presentation time stamp of each frame, in the time base of the stream."""
    is_key: np.ndarray
    """[n] bool, whether a decoder can start with it."""
    num_frames: int
    """Frames whose number is certain: in a truncated file, those shown before any lost frame."""

    @cached_property
    def order(self) -> np.ndarray:
        """[n] int64, the packet of each frame; frames are numbered in presentation order."""
        return np.argsort(self.stamps, kind="stable")

    @cached_property
    def keys(self) -> np.ndarray:
        """[k] int64, the packets that a decoder can start with, ascending."""
        return np.flatnonzero(self.is_key)

    def start_of(self, packet: int) -> int:
        """The packet to start at to decode the frame of `packet`: the last key frame that is not shown after it."""
        number = int(np.searchsorted(self.keys, packet, side="right")) - 1
        # A frame decoded after a key frame but shown before it may depend on the previous key frame.
        while number >= 0 and self.stamps[self.keys[number]] > self.stamps[packet]:
            number -= 1
        return int(self.keys[number]) if number >= 0 else 0


@dataclass
class Sweep:
    """Packets that are decoded without a seek."""

    start: int
    """First packet."""
    end: int
    """Last packet."""
    stamps: list[int] = field(default_factory=list)
    """Time stamps of its wanted frames, ascending."""


def plan_sweeps(table: PacketTable, frames: Sequence[int]) -> list[Sweep]:
    """Plan the sweeps for frames with ascending numbers: decode up to the next one, or seek where that costs less."""
    sweeps: list[Sweep] = []
    for packet in (int(table.order[frame]) for frame in frames):
        start = table.start_of(packet)
        if not sweeps or start - sweeps[-1].end > SEEK_PACKETS:
            sweeps.append(Sweep(start, packet))
        sweep = sweeps[-1]
        sweep.end = max(sweep.end, packet)
        sweep.stamps.append(int(table.stamps[packet]))
    return sweeps


def read_packet_table(path: MediaFile, stall_seconds: float, heartbeat: Heartbeat) -> PacketTable:
    """Read the table of a file. Tables of the last TABLES_KEPT files are cached while the files do not change.

    `heartbeat` is called at each packet. Raises ValueError for packets without a time stamp, and PyAV's errors.
    """
    identity = FileIdentity.of(path)
    table = _tables.pop(identity, None)
    if table is None:
        table = _scan(path, stall_seconds, heartbeat)
    _tables[identity] = table
    while len(_tables) > TABLES_KEPT:
        _tables.pop(next(iter(_tables)), None)
    return table


def _scan(path: MediaFile, stall_seconds: float, heartbeat: Heartbeat) -> PacketTable:
    shown, is_key, decoded = [], [], None
    with open_container(path, stall_seconds) as container:
        stream = video_stream(container)
        promised = stream.frames
        for packet in container.demux(stream):
            heartbeat()
            if packet.size:
                shown.append(packet.pts)
                is_key.append(packet.is_keyframe)
                decoded = packet.dts
    if None in shown:
        raise ValueError("the file has packets without a time stamp")
    stamps = np.asarray(shown, np.int64)
    certain = len(stamps)
    if certain < promised:
        # A lost packet would be decoded after the last one, and a frame is never shown before it is decoded.
        certain = 0 if decoded is None else int((stamps <= decoded).sum())
    return PacketTable(stamps, np.asarray(is_key, bool), certain)


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
    """The first video stream of an open file. Raises MediaError if there is none."""
    if not container.streams.video:
        raise MediaError(Reason.BROKEN_VIDEO, "has no video stream")
    return container.streams.video[0]
