"""Make the table of a film's packets in one pass over the file, and keep it.

Nothing is decoded, with one exception: where a film starts amid a group of pictures, the packets before its first key
frame and those that are shown before that are decoded, because only a decoder knows which of them it shows.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from longvita.data.errors import MediaError, Reason
from longvita.data.media.media_file import FileIdentity, Heartbeat, MediaFile
from longvita.data.media.packet_store import PacketStore
from longvita.data.media.packets import KEY, SHOWN, PacketTable, agreed_rate, decoder_name, open_container, video_stream

TABLES_KEPT = 16
"""Tables that are cached in memory; an hour at 25 frames a second takes 1 MB."""
INDEXED_FORMAT = "mov"
"""Start of FFmpeg's name of the format whose header lists all its packets."""
UNTIMED_FORMATS = ("avi",)
"""Formats that hold no presentation times, so that frames which are decoded out of order have false ones."""
RESTARTING_FORMATS = ("mpegts", "mpeg")
"""Formats of broadcasts, where a jump of the clock is no pause of the film."""
LARGEST_PAUSE = 10.0
"""Longest pause in such a format, seconds, as in FFmpeg's own programs."""
SHOWN_VP8 = 0x10
"""Bit of the first byte of a VP8 frame: a player shows it."""
DEFAULT_RATE = 25
"""Frames per second of a film without times and without a rate, as FFmpeg assumes."""

_tables: dict[FileIdentity, PacketTable] = {}


def read_packet_table(
    path: MediaFile, stall_seconds: float, heartbeat: Heartbeat, store: PacketStore | None = None
) -> PacketTable:
    """Read the table of a file from `store`, or by a pass over the file, after which it is stored there.

    Tables of the last TABLES_KEPT files are cached while the files do not change. `heartbeat` is called at each packet.
    Raises MediaError if there is no film, and PyAV's errors.
    """
    identity = FileIdentity.of(path)
    table = _tables.pop(identity, None)
    if table is None and store is not None:
        table = store.load(identity)
    if table is None:
        table = scan_packets(path, stall_seconds, heartbeat)
        if store is not None:
            store.save(identity, table)
    _tables[identity] = table
    while len(_tables) > TABLES_KEPT:
        _tables.pop(next(iter(_tables)), None)
    return table


def scan_packets(path: MediaFile, stall_seconds: float, heartbeat: Heartbeat) -> PacketTable:
    """Read all packets of a file. Raises as `read_packet_table`."""
    with open_container(path, stall_seconds) as container:
        stream = video_stream(container)
        is_vp8 = decoder_name(stream) == "vp8"
        start, rows = FilmStart(stream), []
        for packet in container.demux(stream):
            heartbeat()
            if packet.size:
                is_shown = not packet.is_discard and (not is_vp8 or bool(memoryview(packet)[0] & SHOWN_VP8))
                rows.append((packet.pts, packet.dts, KEY * packet.is_keyframe | SHOWN * is_shown))
                start.add(packet)
        if not rows:
            raise MediaError(Reason.BROKEN_VIDEO, "has no frame")
        listed = listed_packets(container, stream)
        promised = stream.frames if listed is None else len(listed)
        return _table(rows, start.hidden(), promised, container.format.name, stream)


def _table(rows: list[tuple], hidden: list[int], promised: int, format_name: str, stream: Any) -> PacketTable:
    """The table of packets (time stamp, decoding time stamp, bits), of which the `hidden` ones are not shown."""
    reorders = bool(stream.codec_context and stream.codec_context.has_b_frames)
    shown = [row[0] if row[0] is not None or reorders else row[1] for row in rows]
    for number in hidden:
        shown[number] = shown[0] if shown[number] is None else shown[number]
    is_false = format_name in UNTIMED_FORMATS and reorders and None not in shown and shown == sorted(shown)
    if None in shown or is_false:
        bits = np.asarray([row[2] & KEY | SHOWN for row in rows], np.uint8)
        seconds = 1 / float(stream.average_rate or DEFAULT_RATE)
        return PacketTable(np.arange(len(rows), dtype=np.int64), bits, seconds, has_stamps=False)
    bits = np.asarray([row[2] for row in rows], np.uint8)
    bits[hidden] &= KEY
    time_base = float(stream.time_base)
    stamps = np.asarray(shown, np.int64)
    decoded = np.asarray([stamp if row[1] is None else row[1] for row, stamp in zip(rows, shown)], np.int64)
    restarts = _restarts(decoded, bits, format_name in RESTARTING_FORMATS, time_base)
    num_shown, promised = np.count_nonzero(bits & SHOWN), promised - len(hidden)
    # A lost packet would be decoded after the last one, and a frame is never shown before it is decoded.
    last = int(decoded[-1]) if num_shown < promised and not restarts else None
    return PacketTable(_continuous(stamps, restarts), bits, time_base, tuple(restarts), True, promised, last)


def _restarts(decoded: np.ndarray, bits: np.ndarray, may_jump: bool, time_base: float) -> list[int]:
    """Packets with which the clock starts again, by the decoding time stamps [n]: it goes back, or jumps."""
    steps = np.diff(decoded, prepend=decoded[:1]) * time_base
    # An edit list makes it go back to a hidden key frame, and its own stamps are continuous.
    goes_back = (steps < 0) & (bits & SHOWN > 0) & ((bits & KEY > 0) | (steps < -1.0))
    jumps = (steps > LARGEST_PAUSE) & may_jump
    return np.flatnonzero(goes_back | jumps).tolist()


def _continuous(stamps: np.ndarray, restarts: list[int]) -> np.ndarray:
    """Time stamps [n] that continue over the restarts of the clock, one mean frame after the one before."""
    parts = np.split(stamps, restarts)
    for number in range(1, len(parts)):
        before = parts[number - 1]
        frame = max(1, round((int(before.max()) - int(before.min())) / max(1, len(before) - 1)))
        parts[number] = parts[number] + (int(before.max()) + frame - int(parts[number].min()))
    return np.concatenate(parts)


def facts_of_header(container: Any, stream: Any) -> tuple[int, float] | None:
    """Frames that a player shows and their rate, by a header that lists all packets; None if it does not.

    Packets are read up to the first one that is certainly shown.
    """
    listed = listed_packets(container, stream)
    if not listed:
        return None
    start, rate = FilmStart(stream), float(stream.average_rate or 0)
    for packet in container.demux(stream):
        if packet.size:
            start.add(packet)
        if start.is_complete:
            break
    if len(listed) != stream.frames:  # The header's rate counts hidden frames.
        rate = agreed_rate(rate, len(listed), (max(listed) - min(listed)) * float(stream.time_base))
    return len(listed) - len(start.hidden()), rate or 1.0


def listed_packets(container: Any, stream: Any) -> list[int] | None:
    """Time stamps of the packets that are shown, by a header that lists all packets; None if it does not."""
    if not container.format.name.startswith(INDEXED_FORMAT) or not stream.frames:
        return None
    return [entry.timestamp for entry in stream.index_entries if not entry.is_discard]


class FilmStart:
    """The packets at the start of a film that a decoder may not show: it takes the first ones of the film, in order."""

    def __init__(self, stream: Any):
        self._stream, self._key, self._first = stream, None, None
        self._tried: dict[int, int | None] = {}
        self._shown: set[int | None] = set()
        self._count = 0
        self.is_complete = stream.codec_context is None
        """Whether all these packets have been added."""
        if not self.is_complete:
            stream.thread_type = "NONE"  # Errors come with their packets.

    def add(self, packet: Any) -> None:
        """Add the next packet."""
        number, self._count = self._count, self._count + 1
        if self.is_complete:
            return
        if packet.pts is None and self._key is None:
            self.is_complete = True
        elif self._key is None:
            if packet.is_keyframe:
                self._key = packet.pts
            if packet.is_keyframe and number == 0:
                self._first = packet  # It is decoded only if frames that come after it are shown before it.
            else:
                self._try(number, packet)
        elif packet.pts is None or packet.pts < self._key:  # Matroska has no time for a frame before its first one.
            if self._first is not None:
                self._try(0, self._first)
                self._first = None
            self._try(number, packet)
        else:
            self.is_complete = True
        if self.is_complete:
            self._first = None

    def hidden(self) -> list[int]:
        """The added packets, by number, that a decoder does not show."""
        if not self._tried:
            return []
        self._decode(None)
        return [number for number, stamp in self._tried.items() if stamp not in self._shown]

    def _try(self, number: int, packet: Any) -> None:
        if not packet.is_discard:  # The container hides it already.
            self._tried[number] = packet.pts
        self._decode(packet)

    def _decode(self, packet: Any) -> None:
        import av

        with contextlib.suppress(av.FFmpegError):  # It cannot be decoded: that is the question.
            self._shown.update(frame.pts for frame in self._stream.codec_context.decode(packet))
