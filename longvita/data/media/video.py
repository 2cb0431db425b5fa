"""Videos to frames: which frames are taken, what a header tells, and decoding the chosen ones alone.

A video is a file or a folder of frame pictures. Files are read by decord; where it fails, PyAV takes over from the
first frame that is missing, and what PyAV cannot read either is a MediaError. Nothing is ever repeated or skipped in
silence.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from longvita.data.errors import MediaError, Reason
from longvita.data.media.image import MAX_PIXELS, check_regular_file, open_picture
from longvita.data.media.source import Stored, as_stored, files_in, is_folder, opened

FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Pictures that count as frames of a folder."""
STALL_SECONDS = 120.0
"""Longest wait for one frame, seconds."""
BATCH_FRAMES = 8
"""Frames asked of decord at once: bounds memory and the time between two looks at the clock."""
FAULT_TOLERANCE = 1e-9
"""decord repeats frames in place of damaged ones unless this share, the smallest above none, forbids it."""


@dataclass(frozen=True)
class VideoFacts:
    """What the header of a video tells."""

    num_frames: int
    """Frames in the file or folder."""
    fps: float
    """Frames per second of the file; 1 for a folder."""
    is_folder: bool = False
    """Whether the video is a folder of frame pictures."""


def frame_indices(num_frames: int, fps: float, max_fps: float, max_num_frames: int) -> list[int]:
    """Frames taken from a video file of `num_frames` frames at `fps` (1/s): `max_fps` a second, at most
    `max_num_frames`, evenly spaced from the first one on. A frame may come more than once if the video is slower.
    """
    step = _frame_step(num_frames, fps, max_fps, max_num_frames)
    indices = (int(slot * step) for slot in range(max_num_frames))
    return [index for index in indices if index < num_frames]


def folder_indices(num_frames: int, max_fps: float, max_num_frames: int) -> list[int]:
    """Frames taken from a folder of `num_frames` pictures, which counts as a video of one frame a second."""
    taken = int(min(num_frames * max_fps, max_num_frames))
    return [int(num_frames / taken) * slot for slot in range(taken)]


def chosen_frames(facts: VideoFacts, max_fps: float, max_num_frames: int) -> list[int]:
    """Indices of the frames taken from a video."""
    if facts.is_folder:
        return folder_indices(facts.num_frames, max_fps, max_num_frames)
    return frame_indices(facts.num_frames, facts.fps, max_fps, max_num_frames)


def count_frames(facts: VideoFacts, max_fps: float, max_num_frames: int) -> int:
    """len(chosen_frames(...)) without listing them."""
    if facts.is_folder:
        return int(min(facts.num_frames * max_fps, max_num_frames))
    step = _frame_step(facts.num_frames, facts.fps, max_fps, max_num_frames)
    if step <= 0:
        return 0
    taken = min(max_num_frames, math.ceil(facts.num_frames / step))
    while taken > 0 and (taken - 1) * step >= facts.num_frames:
        taken -= 1
    while taken < max_num_frames and taken * step < facts.num_frames:
        taken += 1
    return taken


def most_frames_that_fit(videos: Sequence[VideoFacts], max_fps: float, max_num_frames: int, room: int) -> int | None:
    """The largest frame limit, up to `max_num_frames`, at which all videos together give at most `room` frames.

    None if even one frame a video is too many. The number of frames never falls as the limit rises.
    """

    def total(limit: int) -> int:
        return sum(count_frames(facts, max_fps, limit) for facts in videos)

    if total(1) > room:
        return None
    low, high = 1, max_num_frames
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if total(middle) <= room else (low, middle - 1)
    return low


def _frame_step(num_frames: int, fps: float, max_fps: float, max_num_frames: int) -> float:
    return max(fps / max_fps, num_frames / (max_num_frames + 1))


def list_frames(folder: Stored) -> list[Stored]:
    """Frame pictures of a folder in natural order (frame2 before frame10)."""
    frames = [entry for entry in files_in(folder) if os.path.splitext(entry[0])[1].lower() in FRAME_SUFFIXES]
    return [source for _, source in sorted(frames, key=lambda entry: _natural_key(entry[0]))]


def _natural_key(name: str) -> tuple:
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(part), part) if part.isdigit() else (0, 0, part) for part in parts)


def probe_video(path: Stored) -> VideoFacts:
    """Frames and rate of a video from its header alone; files whose header has no count are demuxed, not decoded.

    Raises MediaError: missing_file if there is nothing at `path`, broken_video if it is no video that can be opened.
    """
    path = as_stored(path)
    if is_folder(path):
        num_frames = len(list_frames(path))
        if num_frames == 0:
            raise MediaError(Reason.BROKEN_VIDEO, f"video {path} is a folder without a .png, .jpg or .jpeg file")
        return VideoFacts(num_frames, 1.0, is_folder=True)
    check_regular_file(path, "video")
    import av

    try:
        with opened(path) as file, av.open(file) as container:
            stream = _video_stream(container)
            rate = stream.average_rate
            num_frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            _check_frame_size(stream)
    except MediaError as error:
        raise MediaError(error.reason, f"video {path} {error.detail}") from error
    except Exception as error:  # A damaged file may fail in any part of FFmpeg or PyAV.
        raise MediaError(Reason.BROKEN_VIDEO, f"video {path} cannot be opened: {_tell(error)}") from error
    if num_frames <= 0 or not rate:
        raise MediaError(Reason.BROKEN_VIDEO, f"video {path} has {num_frames} frames at a rate of {rate}")
    return VideoFacts(num_frames, float(rate))


def _video_stream(container: Any) -> Any:
    if not container.streams.video:
        raise MediaError(Reason.BROKEN_VIDEO, "has no video stream")
    return container.streams.video[0]


def _check_frame_size(stream: Any) -> None:
    if not 0 < stream.width * stream.height <= MAX_PIXELS:
        raise MediaError(Reason.BROKEN_VIDEO, f"has frames of {stream.width} x {stream.height} pixels")


def read_frames(
    path: Stored,
    indices: Sequence[int],
    stall_seconds: float = STALL_SECONDS,
    beat: Callable[[], None] = lambda: None,
) -> Iterator[Image.Image]:
    """The frames of a video at ascending `indices`, in order, as RGB pictures; the others are not decoded to pictures.

    `beat` is called at each sign of life. Raises MediaError if a frame cannot be had, naming file and frame, or if one
    takes longer than `stall_seconds`.
    """
    path = as_stored(path)
    if is_folder(path):
        files = list_frames(path)
        for index in indices:
            beat()
            if index >= len(files):
                raise MediaError(Reason.BROKEN_VIDEO, f"video {path} has {len(files)} frames, frame {index} is asked")
            yield open_picture(files[index])
        return
    done = 0
    try:
        for picture in _read_with_decord(path, indices, beat):
            yield picture
            done += 1
        return
    except Exception as error:  # noqa: BLE001 - decord raises DECORDError, RuntimeError, IndexError and more.
        decord_error = _tell(error)
    try:
        for picture in _read_with_pyav(path, indices[done:], stall_seconds, beat):
            yield picture
            done += 1
    except Exception as error:  # A damaged stream may fail in any part of FFmpeg or PyAV.
        missing = f"frame {indices[done]}" if done < len(indices) else "its end"
        raise MediaError(
            Reason.BROKEN_VIDEO,
            f"video {path}: {missing} cannot be decoded (decord: {decord_error}; PyAV: {_tell(error)})",
        ) from error


def _read_with_decord(path: Stored, indices: Sequence[int], beat: Callable[[], None]) -> Iterator[Image.Image]:
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    with opened(path) as file:  # decord reads a file object whole.
        reader = decord.VideoReader(file, num_threads=1, fault_tol=FAULT_TOLERANCE)
    for start in range(0, len(indices), BATCH_FRAMES):
        beat()
        batch = list(indices[start : start + BATCH_FRAMES])
        if batch[-1] >= len(reader):
            raise IndexError(f"{len(reader)} frames, frame {batch[-1]} is asked")
        for pixels in reader.get_batch(batch).asnumpy():
            yield Image.fromarray(pixels)


def _read_with_pyav(
    path: Stored, indices: Sequence[int], stall_seconds: float, beat: Callable[[], None]
) -> Iterator[Image.Image]:
    """Frames by their time stamps: the header's order of frames is the order of their stamps."""
    import av

    with opened(path) as file, av.open(file, timeout=stall_seconds) as container:
        stamps = sorted(
            packet.pts for packet in container.demux(_video_stream(container)) if packet.size and packet.pts is not None
        )
    with opened(path) as file, av.open(file, timeout=stall_seconds) as container:
        stream = _video_stream(container)
        stream.thread_type = "NONE"
        frames = _FrameFinder(container, stream, stall_seconds, beat)
        for index in indices:
            if index >= len(stamps):
                raise IndexError(f"{len(stamps)} frames, frame {index} is asked")
            yield frames.find(stamps[index])


class _FrameFinder:
    """Decodes forward to the frame with a given time stamp, jumping to the key frame before it when that is far."""

    def __init__(self, container: Any, stream: Any, stall_seconds: float, beat: Callable[[], None]):
        self.container, self.stream = container, stream
        self.stall_seconds, self.beat = stall_seconds, beat
        self.decoded = container.decode(stream)
        self.jump = int(2 / stream.time_base)  # Within two seconds decoding on is cheaper than a jump.
        self.last: int | None = None
        self.picture: Image.Image | None = None

    def find(self, stamp: int) -> Image.Image:
        if self.picture is not None and stamp == self.last:
            return self.picture  # A slow video gives a frame more than once.
        if self.last is not None and stamp - self.last > self.jump:
            self.container.seek(stamp, stream=self.stream)
            self.decoded = self.container.decode(self.stream)
        deadline = time.monotonic() + self.stall_seconds
        for frame in self.decoded:
            self.beat()
            if time.monotonic() > deadline:
                raise TimeoutError(f"no frame within {self.stall_seconds} s")
            if frame.pts is None or frame.pts < stamp:
                continue
            if frame.pts > stamp or frame.is_corrupt:
                raise ValueError("the frame is damaged" if frame.is_corrupt else "the frame is missing")
            self.last, self.picture = frame.pts, _upright(frame)
            return self.picture
        raise EOFError("the stream ends before it")


def _upright(frame: Any) -> Image.Image:
    """A decoded frame as RGB, turned as the file says (decord does so by itself)."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels)


def _tell(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()[:200] if lines else ''}"
