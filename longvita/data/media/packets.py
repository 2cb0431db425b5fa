"""The packets of a video file, and the shortest way through them to some of its frames.

A pass over the packets, without decoding, tells when each frame is shown and where a decoder can begin. From that
follows which packets have to be decoded: from the key frame before a wanted frame up to the frame itself.
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
from longvita.data.media.source import MediaFile, opened

JUMP_PACKETS = 12
"""A jump to a key frame costs about as much as decoding so many frames."""
TABLES_KEPT = 16
"""Tables of files that are kept; an hour at 25 frames a second takes 2 MB."""

_tables: dict[FileIdentity, PacketTable] = {}


@dataclass(frozen=True)
class PacketTable:
    """The packets of a file in the order in which they are decoded."""

    stamps: np.ndarray
    """[n] int64, when each frame is shown, in the time base of the stream."""
    is_key: np.ndarray
    """[n] bool, whether a decoder can begin with it."""
    num_frames: int
    """Frames whose number is certain: of a file that ends too early, those before which no lost one was shown."""

    @cached_property
    def order(self) -> np.ndarray:
        """[n] int64, the packet of each frame: frames are numbered in the order in which they are shown."""
        return np.argsort(self.stamps, kind="stable")

    @cached_property
    def keys(self) -> np.ndarray:
        """[k] int64, the packets that a decoder can begin with, ascending."""
        return np.flatnonzero(self.is_key)

    def start_of(self, packet: int) -> int:
        """The packet from which the frame of another one can be decoded: the last key frame not shown after it."""
        number = int(np.searchsorted(self.keys, packet, side="right")) - 1
        # Frames that come behind a key frame but are shown before it may need the one before that.
        while number >= 0 and self.stamps[self.keys[number]] > self.stamps[packet]:
            number -= 1
        return int(self.keys[number]) if number >= 0 else 0


@dataclass
class Sweep:
    """Packets that are decoded in one go."""

    start: int
    """The first packet."""
    end: int
    """The last one."""
    stamps: list[int] = field(default_factory=list)
    """When its wanted frames are shown, ascending."""


def plan_sweeps(table: PacketTable, frames: Sequence[int]) -> list[Sweep]:
    """The way to the frames with these numbers, ascending: on from one to the next, or by a jump where that is less."""
    sweeps: list[Sweep] = []
    for packet in (int(table.order[frame]) for frame in frames):
        start = table.start_of(packet)
        if not sweeps or start - sweeps[-1].end > JUMP_PACKETS:
            sweeps.append(Sweep(start, packet))
        sweep = sweeps[-1]
        sweep.end = max(sweep.end, packet)
        sweep.stamps.append(int(table.stamps[packet]))
    return sweeps


def read_packet_table(path: MediaFile, stall_seconds: float, beat: Callable[[], None]) -> PacketTable:
    """The table of a file. Tables of the last few files are kept while those do not change.

    `beat` is called at each packet. Raises ValueError for packets without a time stamp, and what PyAV raises.
    """
    identity = FileIdentity.of(path)
    table = _tables.pop(identity, None)
    if table is None:
        table = _scan(path, stall_seconds, beat)
    _tables[identity] = table
    while len(_tables) > TABLES_KEPT:
        _tables.pop(next(iter(_tables)), None)
    return table


def _scan(path: MediaFile, stall_seconds: float, beat: Callable[[], None]) -> PacketTable:
    shown, is_key, decoded = [], [], None
    with opened(path) as file, open_container(file, stall_seconds) as container:
        stream = video_stream(container)
        promised = stream.frames
        for packet in container.demux(stream):
            beat()
            if packet.size:
                shown.append(packet.pts)
                is_key.append(packet.is_keyframe)
                decoded = packet.dts
    if None in shown:
        raise ValueError("the file has packets without a time stamp")
    stamps = np.asarray(shown, np.int64)
    certain = len(stamps)
    if certain < promised:
        # A packet that was cut off would be decoded after the last one, and none is shown before it is decoded.
        certain = 0 if decoded is None else int((stamps <= decoded).sum())
    return PacketTable(stamps, np.asarray(is_key, bool), certain)


def video_stream(container: Any) -> Any:
    """The first video stream of an open file. Raises MediaError if there is none."""
    if not container.streams.video:
        raise MediaError(Reason.BROKEN_VIDEO, "has no video stream")
    return container.streams.video[0]
