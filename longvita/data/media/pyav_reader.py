"""Frames of a video file by PyAV: only the packets for wanted frames are decoded, and only these are converted."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from longvita.data.errors import MediaError, Reason
from longvita.data.media.media_file import Heartbeat, MediaFile
from longvita.data.media.packets import PacketTable, Sweep, open_container, plan_sweeps, read_packet_table, video_stream

SKIPPABLE_CODECS = ("h264",)
"""Codecs whose standard marks the frames that no other frame depends on; a decoder may skip those."""


def read_with_pyav(
    path: MediaFile, indices: Sequence[int], stall_seconds: float, heartbeat: Heartbeat, threads: int = 1
) -> Iterator[Image.Image]:
    """Yield the frames with these numbers, ascending and with repeats, as upright RGB pictures.

    `heartbeat` is called for each packet that is read and each frame that is decoded. Raises PyAV's errors,
    TimeoutError if a wanted frame takes longer than `stall_seconds`, ValueError for a frame that the decoder does not
    return, and MediaError for one that is not in the file.
    """
    table = read_packet_table(path, stall_seconds, heartbeat)
    available = [index for index in indices if index < table.num_frames]
    with open_container(path, stall_seconds) as container:
        sweeper = _Sweeper(container, table, threads, stall_seconds, heartbeat)
        for sweep in plan_sweeps(table, available):
            yield from sweeper.run(sweep)
    if len(available) < len(indices):
        raise MediaError(Reason.BROKEN_VIDEO, f"the file ends early, {table.num_frames} of its frames are available")


class _Sweeper:
    """Decodes one file, sweep by sweep."""

    def __init__(self, container: Any, table: PacketTable, threads: int, stall_seconds: float, heartbeat: Heartbeat):
        from av.video.reformatter import VideoReformatter

        self.container, self.table, self.threads = container, table, threads
        self.stall_seconds, self.heartbeat = stall_seconds, heartbeat
        self.stream = video_stream(container)
        self.stream.thread_type = "NONE" if threads == 1 else "AUTO"
        self.decoder = self.stream.codec_context
        self.decoder.thread_count = threads
        self.skips = self.decoder.name in SKIPPABLE_CODECS
        self.reformatter = VideoReformatter()

    def run(self, sweep: Sweep) -> Iterator[Image.Image]:
        """The wanted frames of a sweep."""
        frames = self._decode(sweep)
        for stamp, repeats in itertools.groupby(sweep.stamps):  # Of a slow video a frame may be sampled repeatedly.
            picture = self._upright(self._find(frames, stamp))
            yield from (picture for _ in repeats)

    def _find(self, frames: Iterator[Any], stamp: int) -> Any:
        deadline = time.monotonic() + self.stall_seconds
        for frame in frames:
            self.heartbeat()
            if time.monotonic() > deadline:
                raise TimeoutError(f"no frame within {self.stall_seconds} s")
            if frame.pts is None or frame.pts < stamp:
                continue
            if frame.pts > stamp or frame.is_corrupt:
                raise ValueError("the frame is damaged" if frame.is_corrupt else "the frame is missing")
            return frame
        raise EOFError("the stream ends before it")

    def _decode(self, sweep: Sweep) -> Iterator[Any]:
        """All frames from a sweep's first packet to its last, except those that may be skipped."""
        wanted, left = set(sweep.stamps), set(sweep.stamps)
        for packet in self._packets(sweep):
            if self.skips:
                self.decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from packet.decode()
            left.discard(packet.pts)
            if not left:
                break
        yield from self.decoder.decode(None)

    def _packets(self, sweep: Sweep) -> Iterator[Any]:
        start = int(self.table.stamps[sweep.start])
        if sweep.start > 0:
            self.container.seek(start, stream=self.stream)
        arrived = False
        for packet in self.container.demux(self.stream):
            if not packet.size:
                return
            if not arrived and sweep.start > 0 and packet.pts > start:
                raise ValueError("a seek to the key frame before it ended after it")
            arrived = True
            yield packet

    def _upright(self, frame: Any) -> Image.Image:
        """A decoded frame as RGB, turned by the rotation of the file (decord does that itself)."""
        pixels = self.reformatter.reformat(frame, format="rgb24", threads=self.threads).to_ndarray()
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels)
