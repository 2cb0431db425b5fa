"""Films of every kind that containers hold, made with ffmpeg from frames that show their own number."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.programs import need_programs

WIDTH, HEIGHT, BITS = 64, 48, 8
RATE = 10
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-x264-params")
OPEN_GOP = "open-gop=1:keyint=20:min-keyint=20:bframes=4:scenecut=0"
CLOSED_GOP = "keyint=20:min-keyint=20:bframes=2:scenecut=0"
NO_B_FRAMES = "keyint=20:min-keyint=20:bframes=0:scenecut=0"
X265 = ("-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params")
HEVC = "log-level=none:open-gop=1:keyint=20:min-keyint=20:bframes=4:scenecut=0"


def ffmpeg(*arguments: str | Path) -> None:
    """Run ffmpeg; skip the test where there is none."""
    need_programs("ffmpeg")
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def numbered(number: int) -> np.ndarray:
    """A frame that shows a number in eight columns, white for a bit that is set."""
    columns = [255 * (number >> bit & 1) for bit in range(BITS)]
    grey = np.repeat(np.asarray(columns, np.uint8), WIDTH // BITS)
    return np.broadcast_to(grey[None, :, None], (HEIGHT, WIDTH, 3)).copy()


def number_in(picture: Image.Image) -> int:
    """The number that a frame shows."""
    grey = np.asarray(picture.convert("L"), int).mean(axis=0).reshape(BITS, -1)
    return sum(1 << bit for bit in range(BITS) if grey[bit].mean() > 127)


def write_film(path: Path, *arguments: str, count: int = 80, stamps: Sequence[int] = ()) -> Path:
    """Encode numbered frames; stamps: their times in milliseconds, in an .mkv file, RATE a second by default."""
    source = path.with_name(f"source-{path.name}.mkv")
    with av.open(str(source), "w") as container:
        stream = container.add_stream("ffv1", rate=1000 if stamps else RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            if stamps:
                frame.pts = stamps[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    passthrough = ("-vsync", "passthrough") if stamps else ()
    ffmpeg("-i", source, *arguments, *passthrough, path)
    return path


def h264(path: Path, options: str = CLOSED_GOP, count: int = 80) -> Path:
    """A film in H.264."""
    return write_film(path, *X264, options, count=count)


def copied(source: Path, target: Path, *options: str) -> Path:
    """A stream copy of a film; options apply to the input."""
    ffmpeg(*options, "-i", source, "-c", "copy", target)
    return target


def without_start(source: Path, target: Path, share: float = 0.3) -> Path:
    """A transport stream without its first packets."""
    content = source.read_bytes()
    target.write_bytes(content[188 * int(len(content) // 188 * share) :])
    return target


def cut_at_begin(folder: Path, options: str) -> Path:
    return copied(h264(folder / "whole.mp4", options), folder / "film.mp4", "-ss", "2.7")


def cut_in_the_middle(folder: Path) -> Path:
    """Two parts of one film, one after the other: an edit list with a hidden beginning in the middle."""
    whole = h264(folder / "whole.mp4", NO_B_FRAMES)
    content = bytearray(whole.read_bytes())
    edits, media = (1500, 300), (10240 // RATE)
    entry = b"".join(
        (1500).to_bytes(4, "big") + (start * media).to_bytes(4, "big") + (1 << 16).to_bytes(4, "big")
        for start in (3, 45)
    )
    old = content.index(b"edts") - 4
    size = int.from_bytes(content[old : old + 4], "big")
    body = b"elst" + bytes(4) + len(edits).to_bytes(4, "big") + entry
    box = (8 + 4 + len(body)).to_bytes(4, "big") + b"edts" + (4 + len(body)).to_bytes(4, "big") + body
    for name in (b"trak", b"moov"):
        place = content.rindex(name, 0, old) - 4
        grown = int.from_bytes(content[place : place + 4], "big") + len(box) - size
        content[place : place + 4] = grown.to_bytes(4, "big")
    (folder / "film.mp4").write_bytes(content[:old] + box + content[old + size :])
    return folder / "film.mp4"


def with_cover(folder: Path) -> Path:
    """A film whose first stream is an attached picture."""
    Image.fromarray(numbered(255)).save(folder / "cover.jpg")
    film = h264(folder / "whole.mp4", count=30)
    maps = ("-map", "1", "-map", "0", "-c", "copy", "-disposition:v:0", "attached_pic")
    ffmpeg("-i", film, "-i", folder / "cover.jpg", *maps, folder / "film.mp4")
    return folder / "film.mp4"


def with_still_stream(folder: Path) -> Path:
    """A film whose first stream is a still picture that is not marked as attached."""
    Image.fromarray(numbered(255)).save(folder / "cover.png")
    film = h264(folder / "whole.mp4", count=30)
    ffmpeg("-i", film, "-i", folder / "cover.png", "-map", "1", "-map", "0", "-c", "copy", folder / "film.mkv")
    return folder / "film.mkv"


def joined(folder: Path) -> Path:
    """Two recordings in one transport stream, so that its clock starts again."""
    one = h264(folder / "one.ts", count=40).read_bytes()
    (folder / "film.ts").write_bytes(one + one)
    return folder / "film.ts"


FILMS: dict[str, tuple[Callable[[Path], Path], list[int]]] = {
    "edit list at the begin": (lambda folder: cut_at_begin(folder, NO_B_FRAMES), list(range(27, 80))),
    "edit list at the begin, B-frames": (lambda folder: cut_at_begin(folder, CLOSED_GOP), list(range(27, 80))),
    "edit list at the begin, open GOP": (lambda folder: cut_at_begin(folder, OPEN_GOP), list(range(27, 80))),
    "edit list at the end": (
        lambda folder: copied(h264(folder / "whole.mp4", NO_B_FRAMES), folder / "film.mp4", "-t", "4.1"),
        list(range(41)),
    ),
    "edit list in the middle": (cut_in_the_middle, [*range(3, 18), *range(45, 60)]),
    "edit list at the begin, HEVC": (
        lambda folder: copied(write_film(folder / "whole.mp4", *X265, HEVC), folder / "film.mp4", "-ss", "2.7"),
        list(range(27, 80)),
    ),
    "open GOP": (lambda folder: h264(folder / "film.mp4", OPEN_GOP), list(range(80))),
    "open GOP, transport stream": (lambda folder: h264(folder / "film.ts", OPEN_GOP), list(range(80))),
    "intra refresh": (lambda folder: h264(folder / "film.ts", NO_B_FRAMES + ":intra-refresh=1"), list(range(80))),
    "cut transport stream": (
        lambda folder: without_start(h264(folder / "whole.ts"), folder / "film.ts"),
        list(range(40, 80)),
    ),
    "cut transport stream, HEVC": (
        lambda folder: without_start(write_film(folder / "whole.ts", *X265, HEVC), folder / "film.ts"),
        list(range(40, 80)),
    ),
    "cut transport stream, MPEG-2": (
        lambda folder: without_start(
            write_film(folder / "whole.ts", "-c:v", "mpeg2video", "-g", "20", "-bf", "2", "-q:v", "2"),
            folder / "film.ts",
            0.4,
        ),
        [],
    ),
    "joined transport streams": (joined, [*range(40), *range(40)]),
    "attached picture first": (with_cover, list(range(30))),
    "still stream first": (with_still_stream, list(range(30))),
    "one frame": (lambda folder: h264(folder / "film.mp4", count=1), [0]),
    "one frame, Matroska": (lambda folder: h264(folder / "film.mkv", count=1), [0]),
    "raw H.264": (lambda folder: h264(folder / "film.h264"), list(range(80))),
    "AVI with B-frames": (lambda folder: h264(folder / "film.avi"), list(range(80))),
    "fragmented": (
        lambda folder: write_film(folder / "film.mp4", "-movflags", "frag_keyframe+empty_moov", *X264, CLOSED_GOP),
        list(range(80)),
    ),
    "variable rate": (
        lambda folder: write_film(
            folder / "film.mkv",
            *X264,
            CLOSED_GOP,
            stamps=[*range(0, 2000, 50), *(2000 + 700 * number for number in range(40))],
        ),
        list(range(80)),
    ),
}
"""A function that makes each film, and the numbers that its frames show in order; empty if only a decoder knows."""
