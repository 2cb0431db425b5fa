"""Open video files, only in formats that contain their frames themselves."""

from __future__ import annotations

from typing import Any, BinaryIO

VIDEO_FORMATS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "gif", "mxf", "rm"),
    *("h264", "hevc", "mpegvideo", "m4v", "ivf", "dv", "swf", "vob", "apng", "nut", "wtv"),
)
"""FFmpeg's names of the formats that are read. FFmpeg detects the format by the content of a file: a playlist (hls,
concat, dash) with the name of a video would make it open any other file or address."""


def open_container(file: str | BinaryIO, timeout: float) -> Any:
    """Open a video file as a PyAV container. Raises PyAV's errors, also for a format that is not in VIDEO_FORMATS.

    timeout: longest wait for the next bytes, seconds.
    """
    import av

    options = {"format_whitelist": ",".join(VIDEO_FORMATS)}
    return av.open(file, timeout=timeout, options=options, metadata_errors="replace")  # Old titles are in Latin-1.
