"""Videos to frames: which frames are taken, what a header tells, and decoding the chosen ones alone.

A video is a file or a folder of frame pictures. Files are read by PyAV; where it fails, decord takes over from the
first frame that is missing, and what decord cannot read either is a MediaError. Nothing is ever repeated or skipped in
silence.
"""

from __future__ import annotations

import collections
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from longvita.data.errors import DataError, MediaError, Reason, tell
from longvita.data.media.container import open_container
from longvita.data.media.image import MAX_PIXELS, check_regular_file, open_picture
from longvita.data.media.packets import video_stream
from longvita.data.media.source import MediaFile, as_media_file, files_in, is_folder, opened
from longvita.data.media.sweep import read_with_pyav
from longvita.data.storage.retries import store_failure

FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Pictures that count as frames of a folder."""
STALL_SECONDS = 120.0
"""Longest wait for one frame, seconds."""
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


def selected_frames(facts: VideoFacts, max_fps: float, max_num_frames: int) -> list[int]:
    """Indices of the frames taken from a video."""
    if facts.is_folder:
        return folder_indices(facts.num_frames, max_fps, max_num_frames)
    return frame_indices(facts.num_frames, facts.fps, max_fps, max_num_frames)


def count_frames(facts: VideoFacts, max_fps: float, max_num_frames: int) -> int:
    """len(selected_frames(...)) without listing them."""
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


def max_frames_that_fit(videos: Sequence[VideoFacts], max_fps: float, max_num_frames: int, room: int) -> int | None:
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


def list_frames(folder: MediaFile) -> list[MediaFile]:
    """Frame pictures of a folder in natural order (frame2 before frame10)."""
    frames = [entry for entry in files_in(folder) if os.path.splitext(entry[0])[1].lower() in FRAME_SUFFIXES]
    return [source for _, source in sorted(frames, key=lambda entry: _natural_key(entry[0]))]


def _natural_key(name: str) -> tuple:
    parts = re.split(r"(\d+)", name)
    return tuple((1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts)


def probe_video(path: MediaFile) -> VideoFacts:
    """Frames and rate of a video from its header alone; files whose header has no count are demuxed, not decoded.

    Raises MediaError: missing_file if there is nothing at `path`, broken_video if it is no video that can be opened.
    """
    path = as_media_file(path)
    if is_folder(path):
        return _probe_folder(path)
    check_regular_file(path, "video")
    try:
        with opened(path) as file, open_container(file, STALL_SECONDS) as container:
            stream = video_stream(container)
            rate = stream.average_rate
            num_frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            _check_frame_size(stream)
    except MediaError as error:
        raise MediaError(error.reason, f"video {path} {error.detail}") from error
    except DataError:  # What reads the store is not installed: no fault of the file.
        raise
    except Exception as error:  # A damaged file may fail in any part of FFmpeg or PyAV.
        raise MediaError(Reason.BROKEN_VIDEO, f"video {path} cannot be opened: {tell(error)}") from error
    if num_frames <= 0 or not rate:
        raise MediaError(Reason.BROKEN_VIDEO, f"video {path} has {num_frames} frames at a rate of {rate}")
    return VideoFacts(num_frames, float(rate))


def _probe_folder(path: MediaFile) -> VideoFacts:
    try:
        num_frames = len(list_frames(path))
    except OSError as error:
        raise MediaError(Reason.BROKEN_VIDEO, f"video folder {path} cannot be listed: {error}") from error
    if num_frames == 0:
        raise MediaError(Reason.BROKEN_VIDEO, f"video {path} is a folder without a .png, .jpg or .jpeg file")
    return VideoFacts(num_frames, 1.0, is_folder=True)


def _check_frame_size(stream: Any) -> None:
    # A frame is padded to a square.
    if min(stream.width, stream.height) < 1 or max(stream.width, stream.height) ** 2 > MAX_PIXELS:
        raise MediaError(Reason.BROKEN_VIDEO, f"has frames of {stream.width} x {stream.height} pixels")


def read_frames(
    path: MediaFile,
    indices: Sequence[int],
    stall_seconds: float = STALL_SECONDS,
    beat: Callable[[], None] = lambda: None,
    threads: int = 1,
) -> Iterator[Image.Image]:
    """The frames of a video at ascending `indices`, in order, as RGB pictures; the others are not decoded to pictures.

    `beat` is called at each sign of life; `threads` is how many the decoder of a file has. Raises MediaError if a frame
    cannot be had, naming file and frame, or if one takes longer than `stall_seconds`.
    """
    path = as_media_file(path)
    if is_folder(path):
        files = list_frames(path)
        for index in indices:
            beat()
            if index >= len(files):
                raise MediaError(Reason.BROKEN_VIDEO, f"video {path} has {len(files)} frames, frame {index} is asked")
            yield open_picture(files[index])
        return
    if not indices:
        return
    done = 0
    try:
        for picture in read_with_pyav(path, indices, stall_seconds, beat, threads):
            yield picture
            done += 1
        return
    except DataError:
        raise
    except Exception as error:  # A damaged file may fail in any part of FFmpeg or PyAV.
        # decord would number the frames of a file that ends early as if none were missing, and ends the process where
        # it gets no memory.
        if isinstance(error, MediaError | MemoryError) or store_failure(error):
            detail = error.detail if isinstance(error, MediaError) else tell(error)
            frame = f"frame {indices[done]} cannot be had"
            raise MediaError(Reason.BROKEN_VIDEO, f"video {path}: {frame}: {detail}") from error
        pyav_error = tell(error)
    try:
        for picture in _read_with_decord(path, indices[done:], beat):
            yield picture
            done += 1
    except Exception as error:  # decord raises DECORDError, RuntimeError, IndexError and more.
        missing = f"frame {indices[done]}" if done < len(indices) else "its end"
        raise MediaError(
            Reason.BROKEN_VIDEO,
            f"video {path}: {missing} cannot be decoded (PyAV: {pyav_error}; decord: {tell(error)})",
        ) from error


def _read_with_decord(path: MediaFile, indices: Sequence[int], beat: Callable[[], None]) -> Iterator[Image.Image]:
    """Frame by frame from the first one on: where decord2 3.4.0 jumps it may give another frame, without an error."""
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    with opened(path) as file, open_container(file, STALL_SECONDS):
        pass  # Its own FFmpeg would read any format.
    with opened(path) as file:  # decord reads a file object whole.
        reader = decord.VideoReader(file, num_threads=1, fault_tol=FAULT_TOLERANCE)
    if indices[-1] >= len(reader):
        raise IndexError(f"{len(reader)} frames, frame {indices[-1]} is asked")
    times = collections.Counter(indices)
    for number in range(indices[-1] + 1):
        beat()
        frame = reader.next()
        if number in times:
            yield from itertools.repeat(Image.fromarray(frame.asnumpy()), times[number])
