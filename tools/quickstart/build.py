"""Writes the quickstart's data: pictures, .mp4 files, JSONL files and the tokenizer.

Every sample is a function of its source's name and its number, so the files are identical each time they are written.
Each scan is drawn as several pictures, which the samples share; each video is a separate file.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from longvita.data.chat_template import ChatTemplate
from longvita.data.media.video import read_frames
from longvita.data.sample import Turn
from longvita.data.tokenizer import load_tokenizer
from tools.quickstart import digits, questions, tokenizer, videos
from tools.quickstart.questions import DigitSample, Drawing

TOKENIZER = "tokenizer"
"""Folder of the tokenizer in the data folder."""
SHORT = (8, 16)
"""Minimum and maximum frames of stage 3's first videos."""
LONG = (32, 64)
"""Minimum and maximum frames of stage 3's other videos."""
NEEDLE = (42, 330)
"""Minimum and maximum frames of stage 4's videos."""
NEEDLE_FOLDER = "needle"
"""Folder in the data folder for `longvita evaluate --task needle`: a film of noise, held-out digits to find in it."""
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Positions of the digit in stage 4's held-out videos, from the first frame (0) to the last (1)."""
PICTURES_SEQUENCE = 192
"""Length of stage 2's sequences, tokens."""
TOKENS_PER_TILE = 4
"""Tokens of a tile of the quickstart's model."""
COMPLETE = "complete.json"
"""File with the sizes and the code that the finished data was made from."""
_PIECE = 100


@dataclass(frozen=True)
class Sizes:
    """Numbers of samples to write."""

    variants: int = 16
    """Pictures drawn of each scan."""
    train: dict[str, int] = field(
        default_factory=lambda: {
            "digit": 9500,
            "pictures": 8000,
            "short_videos": 1600,
            "long_videos": 450,
            "needles": 400,
        }
    )
    """Training samples of each source."""
    held_out: dict[str, int] = field(
        default_factory=lambda: {"digit": 1000, "pictures": 1000, "short_videos": 100, "long_videos": 300}
    )
    """Held-out samples of each source except the needles."""
    needles: dict[int, int] = field(default_factory=lambda: {330: 20, 160: 6, 80: 6})
    """Frames of stage 4's held-out videos, and the number of videos at each depth."""


def needle_source(frames: int, depth: float) -> str:
    """Name of the held-out source of stage 4's videos of one length and depth."""
    return f"needles_{frames}_{round(100 * depth)}"


def needle_place(source: str) -> tuple[int, float]:
    """Frames and depth of a source that `needle_source` named."""
    _, frames, percent = source.split("_")
    return int(frames), int(percent) / 100


def build(folder: Path, sizes: Sizes | None = None, processes: int = 2) -> None:
    """Write all data to `folder`, unless it contains the same data already."""
    sizes = sizes or Sizes()
    stamp = {"sizes": json.loads(json.dumps(asdict(sizes))), "code": _fingerprint()}
    if (folder / COMPLETE).exists() and json.loads((folder / COMPLETE).read_text()) == stamp:
        return
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    tokenizer.train_tokenizer(tokenizer.task_texts(), draft / TOKENIZER)
    jobs = list(_jobs(draft, sizes))
    if processes == 1:
        for job in jobs:
            _work(job)
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            collections.deque(pool.map(_work, jobs), maxlen=0)
    _join(draft)
    _write_needles(draft / NEEDLE_FOLDER)
    (draft / COMPLETE).write_text(json.dumps(stamp))
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)


def _fingerprint() -> str:
    """Digest of the code that determines the data."""
    digest = hashlib.sha256()
    for module in (digits, questions, tokenizer, videos):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


# Samples, each a function of its source's name, its split and its number.


def make_sample(
    split: str, source: str, number: int, count_tokens: Callable[[DigitSample], int]
) -> tuple[DigitSample, dict]:
    """Sample `number` of a source, and the other fields of its line in the JSONL file."""
    data = digits.load()
    scans, labels = data.part(split), data.labels
    rng = _generator(split, source, number)
    if source == "digit":
        scan = int(scans[number % len(scans)]) if split == "held_out" else int(rng.choice(scans))
        return questions.name_the_digit(scan, labels), {}
    if source == "pictures":
        return _about_pictures(split, number, scans, labels, rng, count_tokens)
    if source.startswith("needles"):
        frames, depth = _log_uniform(rng, *NEEDLE), float(rng.random())
        if split == "held_out":
            frames, depth = needle_place(source)
        return questions.digit_in_noise(frames, depth, scans, labels, rng), {"frames": frames, "depth": depth}
    least, most = SHORT if source == "short_videos" else LONG
    frames = most if split == "held_out" else _log_uniform(rng, least, most)
    return questions.after_the_marker(frames, scans, labels, rng), {"frames": frames}


def _about_pictures(
    split: str,
    number: int,
    scans: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    count_tokens: Callable[[DigitSample], int],
) -> tuple[DigitSample, dict]:
    shown = questions.choose_scans(int(rng.integers(1, questions.MAX_PICTURES + 1)), scans, labels, rng)
    if split == "train":
        return questions.much_about_pictures(shown, labels, rng, PICTURES_SEQUENCE, count_tokens), {}
    kinds = list(questions.PICTURE_QUESTIONS)
    kind = kinds[number % len(kinds)]
    return questions.about_pictures(shown, labels, rng, kind), {"kind": kind}


def _generator(split: str, source: str, number: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(f"{split}/{source}".encode()), number])


def _log_uniform(rng: np.random.Generator, least: int, most: int) -> int:
    return min(int(np.exp(rng.uniform(np.log(least), np.log(most + 1)))), most)


# Files.


@dataclass(frozen=True)
class _Job:
    """A part of the files, written by one process."""

    folder: Path
    sizes: Sizes
    split: str
    source: str
    """A source of samples, or "" for the pictures of scans `first` to `last`."""
    first: int
    last: int


def _jobs(folder: Path, sizes: Sizes) -> Iterator[_Job]:
    """All jobs, of at most 100 samples each; the longest videos first."""
    held_out = dict(sizes.held_out)
    for frames, count in sizes.needles.items():
        held_out |= {needle_source(frames, depth): count for depth in DEPTHS}
    sources = [("held_out", name, count) for name, count in reversed(held_out.items())]
    sources += [("train", name, count) for name, count in reversed(sizes.train.items())]
    sources += [(split, "", len(digits.load().part(split))) for split in ("train", "held_out")]
    for split, source, count in sources:
        for first in range(0, count, _PIECE):
            yield _Job(folder, sizes, split, source, first, min(first + _PIECE, count))


def _work(job: _Job) -> None:
    if not job.source:
        _write_pictures(job)
        return
    count_tokens = _token_counter(str(job.folder / TOKENIZER))
    part = job.folder / job.split / f"{job.source}.{job.first:06d}"
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w") as file:
        for number in range(job.first, job.last):
            sample, facts = make_sample(job.split, job.source, number, count_tokens)
            media = _write_video(job, number, sample) if sample.is_video else _picture_paths(job, number, sample)
            file.write(json.dumps({"messages": sample.messages(), **media, **facts}) + "\n")


def _write_pictures(job: _Job) -> None:
    data, folder = digits.load(), job.folder / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for scan in data.part(job.split)[job.first : job.last]:
        for variant in range(job.sizes.variants):
            rng = np.random.default_rng([int(scan), variant])
            picture = digits.draw(data.scans[scan], rng, digits.STRENGTH[job.split])
            Image.fromarray(picture).save(folder / _picture_name(scan, variant), compress_level=1)


def _picture_name(scan: int, variant: int) -> str:
    return f"{scan:04d}_{variant}.png"


def _picture_paths(job: _Job, number: int, sample: DigitSample) -> dict[str, list[str]]:
    variants = _generator(job.split, f"{job.source}/variants", number).integers(
        job.sizes.variants, size=len(sample.drawings)
    )
    names = [_picture_name(drawing.scan, variant) for drawing, variant in zip(sample.drawings, variants, strict=True)]
    return {"images": [f"pictures/{name}" for name in names]}


def _write_video(job: _Job, number: int, sample: DigitSample) -> dict[str, list[str]]:
    name = f"videos/{job.split}/{job.source}/{number:06d}.mp4"
    path = job.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = _generator(job.split, f"{job.source}/frames", number)
    videos.write_mp4(path, (draw_frame(drawing, rng, digits.STRENGTH[job.split]) for drawing in sample.drawings))
    return {"videos": [name]}


def _write_needles(folder: Path) -> None:
    """Write the needle task's input: a film as long as the longest video, and a held-out scan of each digit."""
    folder.mkdir()
    data, rng = digits.load(), _generator("held_out", NEEDLE_FOLDER, 0)
    videos.write_mp4(folder / "film.mp4", (videos.draw_noise(rng) for _ in range(NEEDLE[1])))
    lines = []
    for digit in range(10):
        scan = int(rng.choice(data.held_out[data.labels[data.held_out] == digit]))
        # Encoded by the same codec as the frames around it.
        videos.write_mp4(folder / "needle.mp4", [digits.draw(data.scans[scan], rng, digits.STRENGTH["held_out"])])
        next(iter(read_frames(folder / "needle.mp4", [0]))).save(folder / f"{digit}.png")
        (turn,) = questions.name_the_digit(scan, data.labels).turns
        lines.append(json.dumps({"image": f"{digit}.png", "question": turn.text, "answer": turn.answer}) + "\n")
    (folder / "needle.mp4").unlink()
    (folder / "needles.jsonl").write_text("".join(lines))


def draw_frame(drawing: Drawing, rng: np.random.Generator, strength: float) -> np.ndarray:
    """One frame of a video, [56, 56, 3] uint8."""
    if drawing.kind == "marker":
        return videos.draw_marker(rng)
    if drawing.kind == "noise":
        return videos.draw_noise(rng)
    return digits.draw(digits.load().scans[drawing.scan], rng, strength)


@functools.cache
def _token_counter(folder: str) -> Callable[[DigitSample], int]:
    """A function that counts the tokens of a sample of pictures."""
    template = ChatTemplate(load_tokenizer(folder), TOKENS_PER_TILE)

    @functools.cache
    def turn_length(role: str, text: str) -> int:
        return template.text_length((Turn(role, text),))

    def count(sample: DigitSample) -> int:
        turns = sum(turn_length(message["role"], message["content"]) for message in sample.messages())
        return turns + len(sample.drawings) * template.tokens_per_frame

    return count


def _join(folder: Path) -> None:
    """Join the parts of each source to one JSONL file."""
    for part in sorted((folder / "train").iterdir()) + sorted((folder / "held_out").iterdir()):
        with part.with_suffix(".jsonl").open("a") as file:
            file.write(part.read_text())
        part.unlink()
