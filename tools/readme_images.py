"""Draws the README's two images from a finished quickstart: `python tools/readme_images.py [runs/quickstart]`."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from longvita.data.media.pictures.picture_file import open_picture
from longvita.data.media.video import read_frames

OUTPUT = Path("docs/images")
VIDEO = "data/videos/held_out/needles_330_50/000000.mp4"
FRAMES = range(0, 330, 41)
"""Every 41st frame; frame 164 holds the digit."""
SIDE, GAP = 72, 4
LOSS_SIZE = (640, 360)
COLOURS = 200
"""Colours of the palette, which keeps the files small."""


def frame_strip(video: Path) -> Image.Image:
    """Place the frames of FRAMES next to each other."""
    strip = Image.new("RGB", (len(FRAMES) * (SIDE + GAP) - GAP, SIDE), "white")
    for place, frame in enumerate(read_frames(video, FRAMES)):
        strip.paste(frame.resize((SIDE, SIDE), Image.Resampling.NEAREST), (place * (SIDE + GAP), 0))
    return strip


def main(run: Path) -> None:
    """Write docs/images/video_frames.png and docs/images/loss_stage2.png."""
    images = {
        "video_frames.png": frame_strip(run / VIDEO),
        "loss_stage2.png": open_picture(run / "stage2" / "loss.png").resize(LOSS_SIZE, Image.Resampling.LANCZOS),
    }
    for name, image in images.items():
        image.convert("RGB").quantize(COLOURS).save(OUTPUT / name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart"))
