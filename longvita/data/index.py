"""The index of a JSONL file: where each sample lies, its text's length, and what its media's headers tell.

One pass over the file parses and tokenizes every line and opens the header of every picture and video; nothing is
decoded. What cannot be used is noted with its reason. The result is kept in a cache file that is valid for as long as
the data file, the tokenizer and the media folder stay the same; lengths for a given tile size, frame limit or sequence
follow from it without another pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvita.data.document import probe_sample
from longvita.data.errors import DataError, SampleError
from longvita.data.media.item import MediaFacts, PictureFacts
from longvita.data.media.video import VideoFacts
from longvita.data.quarantine import SetAside
from longvita.data.sample import parse_line
from longvita.data.template import ChatTemplate

VERSION = 1
"""Raised when the cache's contents change."""
EDGE_BYTES = 65536
"""Bytes at the start and the end of a data file that its fingerprint covers, beside its size and time."""
PICTURE, VIDEO_FILE, FRAME_FOLDER = 0.0, 1.0, 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileIndex:
    """The samples of one JSONL file that can be used, and the others' entries for the quarantine file."""

    offsets: np.ndarray
    """[n] int64, first byte of each sample's line."""
    sizes: np.ndarray
    """[n] int64, bytes of each line."""
    lines: np.ndarray
    """[n] int64, number of each line, from 1."""
    text_tokens: np.ndarray
    """[n] int64, tokens of each sample without its tiles."""
    media_starts: np.ndarray
    """[n + 1] int64, each sample's rows of `media`."""
    media: np.ndarray
    """[m, 3] float64: PICTURE, width, height; or VIDEO_FILE or FRAME_FOLDER, number of frames, frames per second."""
    broken: tuple[SetAside, ...]
    """Samples that cannot be used."""

    def __len__(self) -> int:
        return len(self.offsets)

    def facts(self, number: int) -> MediaFacts:
        """What the headers of one sample's media told."""
        rows = self.media[self.media_starts[number] : self.media_starts[number + 1]]
        return MediaFacts(
            pictures=tuple(PictureFacts(int(a), int(b)) for kind, a, b in rows if kind == PICTURE),
            videos=tuple(VideoFacts(int(a), float(b), kind == FRAME_FOLDER) for kind, a, b in rows if kind != PICTURE),
        )


@dataclass(frozen=True)
class IndexSettings:
    """What an index depends on beside its data file."""

    source: str
    """Name of the data source, for the quarantine file."""
    media_root: str
    """Folder that media paths are relative to."""
    max_fps: float
    """Most frames taken from one second of video, 1/s."""


def load_index(path: str | Path, template: ChatTemplate, settings: IndexSettings, cache: str | Path) -> FileIndex:
    """The index of a JSONL file, from the cache folder or made and put there.

    Several processes may ask at once: the first one works, the others wait for it.
    Raises DataError if there is no such file.
    """
    path, cache = Path(path), Path(cache)
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise DataError(f"data file {path} of source {settings.source!r} {what}; see data.data_root and its data_paths")
    fingerprint = _fingerprint(path, template, settings)
    name = hashlib.blake2b(f"{path.resolve()}\n{fingerprint}".encode(), digest_size=8).hexdigest()
    cached = cache / f"{path.stem}-{name}.npz"
    if not cached.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cached.with_suffix(".lock")):
            if not cached.exists():
                start = time.monotonic()
                index = build_index(path, template, settings)
                _save(index, cached)
                logger.info(
                    "indexed %s: %d samples, %d set aside, %.1f s",
                    path,
                    len(index),
                    len(index.broken),
                    time.monotonic() - start,
                )
    return _load(cached)


def build_index(path: str | Path, template: ChatTemplate, settings: IndexSettings) -> FileIndex:
    """One pass over a JSONL file. Blank lines are no samples."""
    rows: list[tuple[int, int, int, int]] = []
    media: list[tuple[float, float, float]] = []
    media_starts = [0]
    broken: list[SetAside] = []
    for number, offset, line in numbered_lines(path):
        try:
            sample = parse_line(line)
            facts = probe_sample(sample, settings.media_root, settings.max_fps)
            rows.append((offset, len(line), number, template.text_length(sample.turns)))
        except SampleError as error:
            broken.append(SetAside.because(error, settings.source, str(path), number))
            continue
        media += _media_rows(facts)
        media_starts.append(len(media))
    table = np.asarray(rows, np.int64).reshape(-1, 4)
    return FileIndex(
        offsets=table[:, 0].copy(),
        sizes=table[:, 1].copy(),
        lines=table[:, 2].copy(),
        text_tokens=table[:, 3].copy(),
        media_starts=np.asarray(media_starts, np.int64),
        media=np.asarray(media, np.float64).reshape(-1, 3),
        broken=tuple(broken),
    )


def numbered_lines(path: str | Path) -> Iterator[tuple[int, int, bytes]]:
    """Line number, first byte and bytes of each line that is not blank."""
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, offset, line
            offset += len(line)


def _media_rows(facts: MediaFacts) -> list[tuple[float, float, float]]:
    pictures = [(PICTURE, float(picture.width), float(picture.height)) for picture in facts.pictures]
    videos = [
        (FRAME_FOLDER if video.is_folder else VIDEO_FILE, float(video.num_frames), video.fps) for video in facts.videos
    ]
    return pictures + videos


def _fingerprint(path: Path, template: ChatTemplate, settings: IndexSettings) -> str:
    status = path.stat()
    edges = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        edges.update(file.read(EDGE_BYTES))
        file.seek(max(status.st_size - EDGE_BYTES, 0))
        edges.update(file.read(EDGE_BYTES))
    return json.dumps(
        {
            "version": VERSION,
            "size": status.st_size,
            "modified": status.st_mtime_ns,
            "edges": edges.hexdigest(),
            "tokenizer": template.tokenizer.fingerprint,
            **dataclasses.asdict(settings),
        }
    )


def _save(index: FileIndex, path: Path) -> None:
    """Writes the cache file in one step, so that nobody ever reads half of it."""
    arrays = {field.name: getattr(index, field.name) for field in dataclasses.fields(index) if field.name != "broken"}
    broken = "\n".join(entry.to_json() for entry in index.broken).encode()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(draft, "wb") as file:
        np.savez(file, **arrays, broken=np.frombuffer(broken, np.uint8))
    os.replace(draft, path)


def _load(path: Path) -> FileIndex:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    broken = arrays.pop("broken").tobytes().decode()
    return FileIndex(**arrays, broken=tuple(SetAside.from_json(line) for line in broken.split("\n") if line))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock file. Where the file system has no locks, two processes may do the same work; the result is one."""
    with open(path, "w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
