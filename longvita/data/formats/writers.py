"""Writes samples as published JSONL, with files for media that had none, or as WebDataset shards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from longvita.data.errors import DataError, MediaError, Reason
from longvita.data.media.image import check_regular_file
from longvita.data.media.kinds import PICTURES, VIDEOS, ending
from longvita.data.media.source import FilePart, InlineMedia, MediaRef, is_folder, leads_outside, read_bytes, resolve
from longvita.data.sample import Sample
from longvita.data.storage import remote

SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
"""First bytes of pictures and the ends of their files' names."""
NUMBER_DIGITS = 9
SHARD_DIGITS = 6


class Writer(Protocol):
    """Takes the samples of one source, one after the other."""

    @property
    def media_root(self) -> str:
        """Folder that the written paths are relative to."""

    def add(self, number: int, sample: Sample) -> None:
        """Writes a sample. Raises MediaError, before anything of it is written, and DataError."""

    def close(self) -> None:
        """Nothing more comes."""


class JsonlWriter:
    """NAME.jsonl. A path stays as it is; other media become files below media/NAME."""

    def __init__(self, folder: Path, target: Path, name: str, media_root: str):
        """folder: where the file is written; target: what that folder is called in the end."""
        self._folder, self._name, self._old_root = folder, name, media_root
        # Below the media root, paths to new files and old ones can stand side by side.
        self._is_below = not remote.is_remote(media_root) and not leads_outside(str(target.absolute()), media_root)
        self._prefix = os.path.relpath(target, media_root) if self._is_below else ""
        self._kept, self._written = 0, 0
        self._target = target
        self._file = open(folder / f"{name}.jsonl", "w", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    @property
    def media_root(self) -> str:
        """The source's own, unless its media were written elsewhere."""
        return str(self._target) if self._written and not self._is_below else self._old_root

    def add(self, number: int, sample: Sample) -> None:
        """See Writer."""
        media = [*sample.images, *sample.videos]
        contents = {
            at: _content(medium, self._old_root, at >= len(sample.images))
            for at, medium in enumerate(media)
            if not self._stays(medium)
        }
        self._written += len(contents)
        self._kept += len(media) - len(contents)
        if self._written and self._kept and not self._is_below:
            raise DataError(
                f"{self._name} has media below {self._old_root} and media that are written to {self._target}, and one "
                "file has one media root: give an --output below the media root, or --to webdataset"
            )
        paths = [
            self._write(number, at, medium, contents[at], at >= len(sample.images))
            if at in contents
            else str(_path_of(medium, self._old_root))
            for at, medium in enumerate(media)
        ]
        line = _as_json(sample, paths[: len(sample.images)], paths[len(sample.images) :])
        self._file.write(line + "\n")

    def close(self) -> None:
        """See Writer."""
        self._file.close()

    def _stays(self, medium: MediaRef) -> bool:
        return _path_of(medium, self._old_root) is not None

    def _write(self, number: int, at: int, medium: MediaRef, content: bytes, is_video: bool) -> str:
        name = f"{number:0{NUMBER_DIGITS}}.{at}.{_ending(medium, content, is_video)}"
        path = Path("media", self._name, name)
        (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self._folder / path).write_bytes(content)
        return os.path.normpath(os.path.join(self._prefix, path))


class WebDatasetWriter:
    """NAME-000000.tar and so on: of each sample its text as .json, then its media. Folders of frames stay paths."""

    def __init__(self, folder: Path, name: str, media_root: str, shard_bytes: int):
        """shard_bytes: a shard is full when it has as many."""
        self._media_root = media_root
        self._folder, self._name, self._shard_bytes = folder, name, shard_bytes
        self._shards = 0
        self._archive: tarfile.TarFile | None = None
        self._file: IO[bytes] | None = None

    @property
    def media_root(self) -> str:
        """The source's own: folders of frames alone need it."""
        return self._media_root

    def add(self, number: int, sample: Sample) -> None:
        """See Writer."""
        key = f"{number:0{NUMBER_DIGITS}}"
        names: list[str] = []
        members: list[tuple[str, bytes]] = []
        for at, medium in enumerate((*sample.images, *sample.videos)):
            if isinstance(medium, str) and is_folder(resolve(medium, self._media_root)):
                names.append(medium)
                continue
            content = _content(medium, self._media_root, at >= len(sample.images))
            names.append(f"{key}.{at}.{_ending(medium, content, at >= len(sample.images))}")
            members.append((names[-1], content))
        text = _as_json(sample, names[: len(sample.images)], names[len(sample.images) :])
        archive = self._open_archive()
        for name, content in ((f"{key}.json", text.encode()), *members):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        archive.members = []  # type: ignore[attr-defined] # It would keep every header that it wrote.

    def close(self) -> None:
        """See Writer."""
        if self._archive is not None and self._file is not None:
            self._archive.close()
            self._file.close()
            self._archive = None

    def _open_archive(self) -> tarfile.TarFile:
        """The shard that takes the next sample."""
        if self._archive is not None and self._archive.offset >= self._shard_bytes:
            self.close()
        if self._archive is None:
            path = self._folder / f"{self._name}-{self._shards:0{SHARD_DIGITS}}.tar"
            self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
            self._archive = tarfile.open(fileobj=self._file, mode="w")  # noqa: SIM115 - closed by `close`
            self._shards += 1
        return self._archive


def _path_of(medium: MediaRef, media_root: str) -> str | None:
    """A medium as a path below the media root; None where it is no file there."""
    if isinstance(medium, str):
        return medium
    if not isinstance(medium, FilePart) or medium.size is not None or medium.offset > 0:
        return None
    if remote.is_remote(medium.path) or remote.is_remote(media_root):
        return None
    path = os.path.abspath(medium.path)
    return None if leads_outside(path, media_root) else os.path.relpath(path, media_root)


def _content(medium: MediaRef, media_root: str, is_video: bool) -> bytes:
    """Bytes of a medium. Raises MediaError."""
    source = resolve(medium, media_root)
    check_regular_file(source, "video" if is_video else "picture")
    try:
        return read_bytes(source)
    except OSError as error:
        raise MediaError(Reason.MISSING_FILE, f"{medium} can't be read: {error}") from error


def _ending(medium: MediaRef, content: bytes, is_video: bool) -> str:
    """End of a medium's name; where it has none that is known, by its first bytes."""
    known = ending(medium.name if isinstance(medium, FilePart | InlineMedia) else medium)
    if known in (VIDEOS if is_video else PICTURES):
        return known
    return "mp4" if is_video else next((end for first, end in SIGNATURES.items() if content.startswith(first)), "jpg")


def _as_json(sample: Sample, images: Sequence[str], videos: Sequence[str]) -> str:
    """The published form."""
    messages = [{"role": turn.role, "content": turn.text} for turn in sample.turns]
    media = {key: list(paths) for key, paths in (("images", images), ("videos", videos)) if paths}
    return json.dumps({"messages": messages, **media}, ensure_ascii=False)
