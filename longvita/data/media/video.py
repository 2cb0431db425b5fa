"""Sample frames of videos: headers, the numbers of the sampled frames, and decoding of these frames alone.

A video is a file or a folder of frame pictures. Frames are numbered as a player shows them: those that the container
hides do not count. PyAV reads the files; decord reads a film of a codec that PyAV has no decoder for, from its first
frame to its last. No frame is repeated or skipped silently.
"""

from __future__ import annotations

import bisect
import collections
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from longvita.data.errors import MediaError, Reason
from longvita.data.media import media_file
from longvita.data.media.media_file import Heartbeat, MediaFile, as_media_file, opened, reader_errors
from longvita.data.media.packet_scan import facts_of_header, read_packet_table
from longvita.data.media.packet_store import PacketStore
from longvita.data.media.packets import open_container, video_stream
from longvita.data.media.pictures.picture_file import MAX_PIXELS, open_picture
from longvita.data.media.pyav_reader import Damage, NoDecoderError, read_with_pyav
from longvita.data.natural_order import natural_key
from longvita.errors import shorten

FRAME_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Suffixes of the frames of a folder."""
STALL_SECONDS = 120.0
"""Longest wait for one frame, seconds."""
FOLDER_FPS, SHARE_GPT_VIDEO_FPS = 1.0, 2.0
"""Frames per second of folders, and of those with "ShareGPTVideo" in their path, as the published code has them."""
FrameSampling = Literal["published", "even", "time"]
"""Rule by which frames are sampled from a video."""
Times = Sequence[float]
"""Seconds from the first frame of a video to each frame."""
FAULT_TOLERANCE = 1e-9
"""decord replaces damaged frames by repeated ones up to this fraction; the smallest value above 0 forbids it."""


@dataclass(frozen=True)
class VideoFacts:
    """The header of a video."""

    num_frames: int
    """Frames in the file or folder."""
    fps: float
    """Frames per second: the mean of a file."""
    is_folder: bool = False
    """Whether the video is a folder of frame pictures."""


def frame_indices(num_frames: int, fps: float, max_fps: float, max_num_frames: int) -> list[int]:
    """Sample frames of a video file of `num_frames` frames at `fps` (1/s).

    These are `max_fps` a second, at most `max_num_frames`, evenly spaced from the first one on. A frame may be repeated
    if the video has fewer than `max_fps` a second.
    """
    step = _frame_step(num_frames, fps, max_fps, max_num_frames)
    indices = (int(slot * step) for slot in range(max_num_frames))
    return [index for index in indices if index < num_frames]


def folder_indices(num_frames: int, max_fps: float, max_num_frames: int, fps: float = 1.0) -> list[int]:
    """Sample frames of a folder of `num_frames` pictures at `fps` (1/s); the published rule leaves out the last."""
    count = int(min(num_frames / fps * max_fps, max_num_frames))
    return [int(num_frames / count) * slot for slot in range(count)]


def selected_frames(
    facts: VideoFacts, max_fps: float, max_num_frames: int, sampling: FrameSampling = "published", times: Times = ()
) -> list[int]:
    """Indices of the frames that are sampled from a video; their number does not depend on `sampling`.

    sampling: `published` is the rule of `frame_indices` and `folder_indices`; `even` spaces the frames evenly from the
    first to the last; `time` takes the frames on screen at evenly spaced times. times: for `time` and a file, seconds
    from its first frame to each frame.
    """
    if sampling == "published":
        if facts.is_folder:
            return folder_indices(facts.num_frames, max_fps, max_num_frames, facts.fps)
        return frame_indices(facts.num_frames, facts.fps, max_fps, max_num_frames)
    count = count_frames(facts, max_fps, max_num_frames)
    if sampling == "even":
        return [slot * (facts.num_frames - 1) // max(1, count - 1) for slot in range(count)]
    if facts.is_folder:
        return [slot * facts.num_frames // count for slot in range(count)]
    step = _frame_step(facts.num_frames, facts.fps, max_fps, max_num_frames) / facts.fps
    # Times in milliseconds are rounded, so a frame that is half a millisecond late counts.
    return [max(0, bisect.bisect_right(times, slot * step + 0.0005) - 1) for slot in range(count)]


def frame_times(path: MediaFile, facts: VideoFacts, store: PacketStore | None = None) -> Times:
    """Seconds from the first frame of a video to each frame, by the time stamps of a file. Raises MediaError."""
    path = as_media_file(path)
    if facts.is_folder:
        return [frame / facts.fps for frame in range(facts.num_frames)]
    with reader_errors(path, "video"):
        times = read_packet_table(path, STALL_SECONDS, lambda: None, store).times[: facts.num_frames].tolist()
    # Frames lost at the end of a truncated file follow at the mean rate.
    return [*times, *(frame / facts.fps for frame in range(len(times), facts.num_frames))]


def count_frames(facts: VideoFacts, max_fps: float, max_num_frames: int) -> int:
    """len(selected_frames(...)), without the list."""
    if facts.is_folder:
        return int(min(facts.num_frames / facts.fps * max_fps, max_num_frames))
    step = _frame_step(facts.num_frames, facts.fps, max_fps, max_num_frames)
    return bisect.bisect_left(range(max_num_frames), float(facts.num_frames), key=lambda slot: slot * step)


def no_frame(facts: VideoFacts, max_fps: float) -> str:
    """The error of a video of which no frame is sampled."""
    return f"no frame to sample at {max_fps}/s: it has {facts.num_frames} at {facts.fps}/s; fix: raise data.max_fps"


def max_frames_that_fit(videos: Sequence[VideoFacts], max_fps: float, max_num_frames: int, room: int) -> int | None:
    """The largest frame limit, up to `max_num_frames`, at which all videos together have at most `room` frames.

    None if even one frame a video is too many. The number of frames never falls as the limit rises.
    """

    def total(limit: int) -> int:
        return sum(count_frames(facts, max_fps, limit) for facts in videos)

    return bisect.bisect_right(range(1, max_num_frames + 1), room, key=total) or None


def _frame_step(num_frames: int, fps: float, max_fps: float, max_num_frames: int) -> float:
    return max(fps / max_fps, num_frames / (max_num_frames + 1))


def list_frames(folder: MediaFile) -> list[MediaFile]:
    """Frame pictures of a folder in natural order (frame2 before frame10)."""
    frames = [entry for entry in media_file.files_in(folder) if os.path.splitext(entry[0])[1].lower() in FRAME_SUFFIXES]
    return [source for _, source in sorted(frames, key=lambda entry: natural_key(entry[0]))]


def probe_video(path: MediaFile, store: PacketStore | None = None, folder_fps: float | None = None) -> VideoFacts:
    """Count the frames that a player shows of a video, and their rate, from its header.

    folder_fps: frames per second of a folder of frames; the published rule by its path when None.

    A file whose header does not list its packets is read to its end, and the table of its packets goes to `store`. Only
    the first frames of a film that starts amid a group of pictures are decoded.
    Raises MediaError: missing_file if `path` does not exist, broken_video if it is no video that can be opened.
    """
    path = as_media_file(path)
    if media_file.is_folder(path):
        return _probe_folder(path, folder_fps)
    with reader_errors(path, "video"):
        with open_container(path, STALL_SECONDS) as container:
            stream = video_stream(container)
            if stream.codec_context is None:
                return _probe_with_decord(path)
            # A frame is padded to a square.
            if min(stream.width, stream.height) < 1 or max(stream.width, stream.height) ** 2 > MAX_PIXELS:
                raise MediaError(Reason.BROKEN_VIDEO, f"has frames of {stream.width} x {stream.height} pixels")
            rate = float(stream.average_rate or 0)
            facts = facts_of_header(container, stream)
        if facts is None:
            table = read_packet_table(path, STALL_SECONDS, lambda: None, store)
            facts = table.num_frames, table.mean_rate(rate)
    if facts[0] <= 0:
        raise MediaError(Reason.BROKEN_VIDEO, f"video {shorten(path)} has no frame that a player shows")
    return VideoFacts(*facts)


def _probe_folder(path: MediaFile, fps: float | None) -> VideoFacts:
    try:
        num_frames = len(list_frames(path))
    except OSError as error:
        raise MediaError(
            Reason.BROKEN_VIDEO, f"video folder {shorten(path)} cannot be listed: {shorten(error)}"
        ) from error
    if num_frames == 0:
        raise MediaError(Reason.BROKEN_VIDEO, f"video {shorten(path)} is a folder without a .png, .jpg or .jpeg file")
    return VideoFacts(num_frames, rate_of_folder(path, fps), is_folder=True)


def rate_of_folder(path: MediaFile, fps: float | None) -> float:
    """Frames per second of a folder of frames; the published rule by its path when `fps` is None."""
    published = SHARE_GPT_VIDEO_FPS if "ShareGPTVideo" in str(path) else FOLDER_FPS
    return fps or published


def read_frames(
    path: MediaFile,
    indices: Sequence[int],
    stall_seconds: float = STALL_SECONDS,
    heartbeat: Heartbeat = lambda: None,
    threads: int = 1,
    damage: Damage | None = None,
    store: PacketStore | None = None,
) -> Iterator[Image.Image]:
    """Yield the frames of a video at ascending `indices` as RGB pictures; others are not converted to pictures.

    `threads` are those of a file's decoder; `damage` says which damaged frames of a file are replaced, by default none;
    `store` holds the packet table of the file. Raises MediaError, with file and frame, if a frame cannot be decoded or
    takes longer than `stall_seconds`.
    """
    path = as_media_file(path)
    if media_file.is_folder(path):
        files = list_frames(path)
        for index in indices:
            heartbeat()
            if index >= len(files):
                detail = f"video {shorten(path)} has {len(files)} frames, frame {index} is requested"
                raise MediaError(Reason.BROKEN_VIDEO, detail)
            yield open_picture(files[index])
        return
    if not indices:
        return
    with reader_errors(path, "video"):
        table = read_packet_table(path, stall_seconds, heartbeat, store)
        try:
            yield from read_with_pyav(path, table, indices, stall_seconds, heartbeat, threads, damage)
        except NoDecoderError:
            yield from _read_with_decord(path, indices, heartbeat)  # It numbers the film from its first frame on.


def _open_with_decord(path: MediaFile) -> Any:
    import decord

    decord.logging.set_level(decord.logging.FATAL)
    with open_container(path, STALL_SECONDS):
        pass  # Check the format: decord's own FFmpeg would read any.
    with opened(path) as file:  # decord reads a file object completely.
        return decord.VideoReader(file, num_threads=1, fault_tol=FAULT_TOLERANCE)


def _probe_with_decord(path: MediaFile) -> VideoFacts:
    reader = _open_with_decord(path)
    return VideoFacts(len(reader), float(reader.get_avg_fps()))


def _read_with_decord(path: MediaFile, indices: Sequence[int], heartbeat: Heartbeat) -> Iterator[Image.Image]:
    """Read all frames in order: after a seek, decord2 3.4.0 may return a wrong frame without an error."""
    reader = _open_with_decord(path)
    if indices[-1] >= len(reader):
        raise IndexError(f"{len(reader)} frames, frame {indices[-1]} is requested")
    times = collections.Counter(indices)
    for number in range(indices[-1] + 1):
        heartbeat()
        frame = reader.next()
        if number in times:
            # Of a film narrower than 128 pixels decord2 3.4.0 returns a fourth channel.
            picture = Image.fromarray(np.ascontiguousarray(frame.asnumpy()[..., :3]))
            yield from itertools.repeat(picture, times[number])
