"""Frames of a film by PyAV: only the packets for wanted frames are decoded, and only these are converted to pictures.

Which picture a number gives depends on the film alone. Where a decoder reports damage, each frame is decoded by itself
from the key frame before it, so that the frames which are wanted together decide nothing.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from longvita.data.errors import MediaError, Reason, one_line
from longvita.data.media.h264_slices import is_disposable, size_of_length
from longvita.data.media.media_file import Heartbeat, MediaFile
from longvita.data.media.packets import KEY, PacketTable, Sweep, open_container, plan_sweeps, video_stream
from longvita.data.storage.retries import store_failure

SKIPPABLE_CODECS = ("h264",)
"""Codecs whose standard marks the frames that no other frame depends on; a decoder may skip those."""

Outputs = Generator[tuple[int, Any], None, None]
"""Packets with their numbers, or frames with their stamps."""
SEEKS_BACK = (0, 1, 3)
"""Key frames before that of a sweep to which a seek is tried: of a transport stream it may end after its target."""


@dataclass
class Damage:
    """How damaged frames are treated, and which ones there were."""

    max_share: float = 0.0
    """A damaged frame is replaced by the nearest intact one if that is at most this share of the film's frames away."""
    replaced: dict[int, int] = field(default_factory=dict)
    """Numbers of the damaged frames, and those of the frames that replace them."""


class DamagedFrameError(ValueError):
    """A frame that the decoder does not return, or not intact."""


class DoubtfulFrameError(DamagedFrameError):
    """A frame that may be damaged: the decoder complained about one that it depends on, while others were skipped."""


class NoDecoderError(ValueError):
    """A film of a codec that PyAV has no decoder for."""


class FrameLostError(DamagedFrameError):
    """A frame that the decoder does not return although it reports no error."""


def read_with_pyav(
    path: MediaFile,
    table: PacketTable,
    indices: Sequence[int],
    stall_seconds: float,
    heartbeat: Heartbeat = lambda: None,
    threads: int = 1,
    damage: Damage | None = None,
) -> Iterator[Image.Image]:
    """Yield the frames with these numbers, ascending and with repeats, as upright RGB pictures.

    `heartbeat` is called for each frame that is decoded. Raises PyAV's errors for a file that cannot be opened,
    NoDecoderError, and MediaError if a wanted frame takes longer than `stall_seconds` or is damaged and cannot be
    replaced, as by default none can.
    """
    with contextlib.closing(Film(path, table, stall_seconds, heartbeat, threads)) as film:
        counts = collections.Counter(indices)
        for frame, picture in film.pictures(sorted(counts)):
            if isinstance(picture, DamagedFrameError):
                picture = film.nearest(frame, damage or Damage(), picture)
            yield from itertools.repeat(picture, counts[frame])


class Film:
    """Decodes frames of one file."""

    def __init__(self, path: MediaFile, table: PacketTable, stall_seconds: float, heartbeat: Heartbeat, threads: int):
        self._table, self._threads = table, threads
        self._open = functools.partial(SweepDecoder, path, table, stall_seconds, heartbeat)
        self._decoders: dict[bool, SweepDecoder] = {}
        """That of the sweeps (False), and that of frames decoded by themselves meanwhile, with one thread (True)."""
        self._intact: dict[tuple[int, int], set[int]] = {}
        """Results of `_survey`."""

    def close(self) -> None:
        """Close the file."""
        while self._decoders:
            self._decoders.popitem()[1].close()

    def pictures(self, frames: Sequence[int]) -> Iterator[tuple[int, Image.Image | DamagedFrameError]]:
        """Each of some ascending frames and its picture, or why it is damaged."""
        table = self._table
        certain = [frame for frame in frames if frame < table.num_frames]
        for sweep in plan_sweeps(table, certain):
            for frame, picture in self._decoder(sweep.start, False).run(sweep):
                # Decoded by itself, a frame gives the same picture or error whatever else is wanted.
                yield frame, self._alone(frame) if isinstance(picture, DamagedFrameError) else picture
        for frame in frames[len(certain) :]:
            yield frame, DamagedFrameError(f"the file ends early, {table.num_frames} of its frames are available")

    def nearest(self, frame: int, damage: Damage, error: DamagedFrameError) -> Image.Image:
        """The intact frame nearest to a damaged one. Raises MediaError if it is too far away."""
        for distance in range(1, int(damage.max_share * self._table.total_frames) + 1):
            for other in (frame - distance, frame + distance):
                picture = self._alone(other) if self._seems_intact(other) else error
                if not isinstance(picture, DamagedFrameError):
                    damage.replaced[frame] = other
                    return picture
        raise MediaError(Reason.BROKEN_VIDEO, f"frame {frame} cannot be read: {error}") from error

    def _alone(self, frame: int) -> Image.Image | DamagedFrameError:
        """The picture of one frame, decoded from the key frame before it, or why it is damaged."""
        table = self._table
        packet = int(table.order[frame])
        start = table.start_of(packet)
        ((_, picture),) = self._decoder(start, True).run(Sweep(start, packet, [frame]))
        if isinstance(picture, DoubtfulFrameError):
            ((_, picture),) = self._decoder(start, True).run(Sweep(start, packet, [frame]), skips=False)
        # A seek may miss its packet, and some decoders need more packets than those since the last key frame.
        if isinstance(picture, FrameLostError) and packet in self._survey(0, len(table.bits)):
            ((_, picture),) = self._decoder(0, True).run(Sweep(0, packet, [frame]), False, from_start=True)
        return picture

    def _seems_intact(self, frame: int) -> bool:
        if not 0 <= frame < self._table.num_frames:
            return False
        packet = int(self._table.order[frame])
        start = self._table.start_of(packet)
        end = self._table.end_of(start) if self._table.has_stamps else len(self._table.bits)
        return packet in self._survey(start, end)

    def _survey(self, start: int, end: int) -> set[int]:
        """The packets from `start` to before `end` whose frames are intact."""
        if (start, end) not in self._intact:
            self._intact[start, end] = self._decoder(start, True).survey(start, end)
        return self._intact[start, end]

    def _decoder(self, start: int, is_alone: bool) -> SweepDecoder:
        """One of the two decoders, opened again for a sweep that does not begin with a seek."""
        if is_alone in self._decoders and (start == 0 or not self._table.is_seekable):
            self._decoders.pop(is_alone).close()
        if is_alone not in self._decoders:
            self._decoders[is_alone] = self._open(1 if is_alone else self._threads)
        return self._decoders[is_alone]


class SweepDecoder:
    """Decodes sweeps of an open file."""

    def __init__(self, path: MediaFile, table: PacketTable, stall_seconds: float, heartbeat: Heartbeat, threads: int):
        from av.video.reformatter import VideoReformatter

        self._closer = contextlib.ExitStack()
        self._container = self._closer.enter_context(open_container(path, stall_seconds))
        self._table, self._threads = table, threads
        self._stall_seconds, self._heartbeat = stall_seconds, heartbeat
        self._stream = video_stream(self._container)
        self._decoder = self._stream.codec_context
        if self._decoder is None:
            raise NoDecoderError("PyAV has no decoder for this film")
        self._stream.thread_type = "NONE" if threads == 1 else "AUTO"
        self._decoder.thread_count = threads
        self._can_skip = self._decoder.name in SKIPPABLE_CODECS and table.has_stamps and threads == 1
        self._length_bytes = size_of_length(self._decoder.extradata)
        self._reformatter = VideoReformatter()
        self._errors: list[tuple[int, str]] = []
        """Packets since the last start that the decoder reports as damaged, and what it reports."""
        self._doubtful: list[int] = []
        """Packets since the last start about which the decoder complains while frames are skipped."""
        self._skips = False
        """Whether frames that no other frame depends on are skipped unless they are wanted."""
        self._stamp_of: dict[int, int] = {}
        """Stamps of the decoded packets by their own time stamps, where the clock of the file starts again."""
        self._num_shown = self._key = self._num_read = 0
        """Frames that were returned from a start on, the first key frame of its packets, and the last packet read."""
        self._source: Iterator[tuple[int, Any]] = iter(())
        self._kept: collections.deque[tuple[int, Any]] = collections.deque()
        """Packets that were read already and may be decoded from another start on."""
        self._keeps = False
        """Whether packets are kept."""

    def close(self) -> None:
        """Close the file."""
        self._closer.close()

    def run(
        self, sweep: Sweep, skips: bool = True, from_start: bool = False
    ) -> Iterator[tuple[int, Image.Image | DamagedFrameError]]:
        """Each wanted frame of a sweep and its picture, or why it is damaged.

        skips: whether frames on which no other depends may be skipped. Damage might then change others in silence, so
        that a frame after a complaint of the decoder is doubtful.
        Decoding starts again at each key frame, because a decoder might carry damage over it; with `from_start`, it
        starts at the first packet of the film alone. Raises MediaError if a frame takes longer than `stall_seconds`,
        and errors of the store of the file.
        """
        self._open_at(sweep.start)
        self._keeps = self._table.has_stamps and not from_start
        self._skips = skips and self._can_skip
        starts = {frame: self._table.start_of(int(self._table.order[frame])) for frame in sweep.frames}
        for start, frames in itertools.groupby(sweep.frames, lambda frame: 0 if from_start else starts[frame]):
            yield from self._run_from(start, list(frames))

    def _run_from(self, start: int, frames: list[int]) -> Iterator[tuple[int, Image.Image | DamagedFrameError]]:
        """Frames that are decoded from the key frame `start` on."""
        packets = self._table.order[frames].tolist()
        left = collections.deque(zip(frames, self._table.stamps[packets].tolist()))
        needed = dict(zip(frames, map(self._table.last_needed, packets)))
        held: collections.deque[tuple[int, Any]] = collections.deque()
        deadline = time.monotonic() + self._stall_seconds
        with contextlib.closing(self._outputs(start, {stamp for _, stamp in left})) as outputs:
            for stamp, frame in outputs:
                self._heartbeat()
                if time.monotonic() > deadline:
                    why = f"frame {(held or left)[0][0]} is not decoded within {self._stall_seconds} s"
                    raise MediaError(Reason.BROKEN_VIDEO, why)
                while left and left[0][1] <= stamp:  # Two frames may have one time.
                    number, own = left.popleft()
                    held.append((number, frame if own == stamp else None))
                # A frame may depend on later ones, of which the decoder reports errors when it returns them.
                while held and needed[held[0][0]] <= stamp:
                    yield self._settle(*held.popleft())
                    deadline = time.monotonic() + self._stall_seconds
                if not left and not held:
                    return
        yield from itertools.starmap(self._settle, [*held, *((number, None) for number, _ in left)])

    def _settle(self, number: int, frame: Any) -> tuple[int, Image.Image | DamagedFrameError]:
        """A frame, its number and its picture, or why it is damaged; None for a frame that was not returned."""
        packet = int(self._table.order[number])
        errors = self._errors_before(packet)
        if any(self._table.key_before(packet) <= doubtful <= packet for doubtful in self._doubtful):
            return number, DoubtfulFrameError("the decoder complains")
        if errors:
            return number, DamagedFrameError(f"the frame is damaged: {errors[0]}")
        if frame is None:
            return number, FrameLostError("the decoder does not return the frame")
        return number, self._upright(frame)

    def survey(self, start: int, end: int) -> set[int]:
        """The packets from `start` to before `end` whose frame is intact."""
        self._open_at(start)
        self._keeps = self._skips = False
        packet_of = {int(stamp): start + place for place, stamp in enumerate(self._table.stamps[start:end])}
        shown = [packet_of[stamp] for stamp, _ in self._outputs(start, None, end) if stamp in packet_of]
        return {packet for packet in shown if not self._errors_before(packet)}

    def _errors_before(self, packet: int) -> list[str]:
        """What the decoder reported on the packets that a frame depends on."""
        start = self._table.key_before(packet)
        return [error for number, error in self._errors if start <= number <= packet]

    def _outputs(self, start: int, wanted: set[int] | None, end: int | None = None) -> Outputs:
        """Stamp and frame of all that the decoder returns from packet `start` on, up to the last wanted one.

        Frames that are not wanted may be skipped, none is if `wanted` is None. Errors are recorded.
        """
        table = self._table
        self._errors, self._doubtful, self._num_shown, self._stamp_of = [], [], 0, {}
        self._key = start if start or not len(table.keys) else int(table.keys[0])
        self._decoder.flush_buffers()
        left = set(wanted or ())
        with contextlib.closing(self._packets_from(start, len(table.bits) if end is None else end)) as packets:
            for number, packet in packets:
                stamp = int(table.stamps[number])
                if self._skips:
                    is_skipped = stamp not in (wanted or ()) and is_disposable(bytes(packet), self._length_bytes)
                    self._decoder.skip_frame = "NONREF" if is_skipped else "DEFAULT"
                self._stamp_of[packet.pts] = stamp
                yield from self._decode(packet, number)
                left.discard(stamp)
                if wanted is not None and not left and table.has_stamps:
                    break
        yield from self._decode(None, self._key)

    def _packets_from(self, start: int, end: int) -> Outputs:
        """The packets from `start` to before `end`, with their numbers.

        Those from the next key frame on may be kept, because decoding may start there afterwards.
        """
        old, new = self._kept, collections.deque[tuple[int, Any]]()
        try:
            while True:
                number, packet = old.popleft() if old else next(self._source, (end, None))
                if number >= end or packet is None:
                    return
                if number < start:
                    continue
                if new or (self._keeps and number > start and self._table.bits[number] & KEY):
                    new.append((number, packet))
                yield number, packet
        except _ffmpeg_errors() as error:
            self._record(min(self._num_read, len(self._table.bits) - 1), error)
        finally:
            self._kept = collections.deque([*new, *old])

    def _open_at(self, start: int) -> None:
        """Continue at a packet not after `start`: by a seek, or, in an open file that was not read, at its begin."""
        self._kept.clear()
        stamps, keys = self._table.stamps, self._table.keys
        if start == 0 or not self._table.is_seekable:
            self._source = self._demux(0)
            return
        place = int(np.searchsorted(keys, start))
        for back in SEEKS_BACK:
            self._container.seek(int(stamps[keys[max(0, place - back)]]), stream=self._stream)
            packets = self._demux(0)
            _, first = next(packets, (0, None))
            stamp = None if first is None else first.pts
            arrived = [] if stamp is None else np.flatnonzero(stamps == stamp).tolist()
            if arrived and arrived[0] <= start:
                self._kept.append((arrived[0], first))
                self._source = self._demux(arrived[0] + 1)
                return
        self._source = iter(())

    def _demux(self, number: int) -> Iterator[tuple[int, Any]]:
        """The next packets, counted from `number` on."""
        for packet in filter(_has_data, self._container.demux(self._stream)):
            self._num_read = number
            yield number, packet
            number += 1

    def _decode(self, packet: Any, number: int) -> Iterator[tuple[int, Any]]:
        complaints: list[Any] = []
        with _complaints(complaints) if self._skips else contextlib.nullcontext():
            try:
                frames = self._decoder.decode(packet)
            except _ffmpeg_errors() as error:
                frames = []
                if packet is not None:
                    self._record(number, error)
        if complaints and packet is not None and self._matters(number):
            self._doubtful.append(number)
        for frame in frames:
            stamp = self._stamp(frame)
            if stamp is None:
                continue
            if frame.is_corrupt:
                for damaged in np.flatnonzero(self._table.stamps == stamp).tolist():
                    self._note(damaged, "its data are damaged")
            yield stamp, frame

    def _note(self, number: int, text: str) -> None:
        """Record an error at a packet."""
        if self._matters(number):
            self._errors.append((number, text))

    def _matters(self, number: int) -> bool:
        """Whether an error at a packet is one of the film: not if it is shown before the key frame of the start."""
        stamps = self._table.stamps
        return number == self._key or bool(stamps[number] >= stamps[self._key])

    def _record(self, number: int, error: Exception) -> None:
        if store_failure(error):
            raise error
        # With several threads an error is reported some packets late.
        for late in range(max(0, number + 1 - self._threads), number + 1):
            self._note(late, one_line(error))

    def _stamp(self, frame: Any) -> int | None:
        """The stamp of a decoded frame in the table."""
        if not self._table.has_stamps:
            self._num_shown += 1
            return self._num_shown - 1
        return self._stamp_of.get(frame.pts) if self._table.restarts else frame.pts

    def _upright(self, frame: Any) -> Image.Image:
        """A decoded frame as RGB, turned by the rotation of the file (decord does that itself)."""
        pixels = self._reformatter.reformat(frame, format="rgb24", threads=self._threads).to_ndarray()
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels)


@contextlib.contextmanager
def _complaints(found: list[Any]) -> Iterator[None]:
    """Collect the errors that a decoder logs in this thread; it conceals some of the damage that it finds."""
    from av import logging

    level, skips_repeated = logging.get_level(), logging.get_skip_repeated()
    logging.set_level(logging.ERROR)
    logging.set_skip_repeated(False)  # Otherwise a complaint is lost if the last one, of any film, was the same.
    try:
        with logging.Capture() as complaints:
            yield
        found += complaints
    finally:
        logging.set_level(level)
        logging.set_skip_repeated(skips_repeated)


def _has_data(packet: Any) -> bool:
    return packet.size > 0


def _ffmpeg_errors() -> type[Exception]:
    import av

    return av.FFmpegError
