"""The packets of a video file, and which of them have to be decoded for some of its frames.

A pass over the packets, without decoding, gives the time of each frame and the key frames. The packets to decode for a
frame are those from the key frame before it up to the frame itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from longvita.data.errors import MediaError, Reason
from longvita.data.media.container import open_container
from longvita.data.media.identity import FileIdentity
from longvita.data.media.media_file import MediaFile, opened

SEEK_PACKETS = 12
"""A seek to a key frame costs about as much as decoding this number of frames."""
TABLES_KEPT = 16
"""Tables that are cached; an hour at 25 frames a second takes 2 MB."""

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


def read_packet_table(path: MediaFile, stall_seconds: float, heartbeat: Callable[[], None]) -> PacketTable:
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


def _scan(path: MediaFile, stall_seconds: float, heartbeat: Callable[[], None]) -> PacketTable:
    shown, is_key, decoded = [], [], None
    with opened(path) as file, open_container(file, stall_seconds) as container:
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


def video_stream(container: Any) -> Any:
    """The first video stream of an open file. Raises MediaError if there is none."""
    if not container.streams.video:
        raise MediaError(Reason.BROKEN_VIDEO, "has no video stream")
    return container.streams.video[0]
