"""Write the samples of data files again, broken ones left out: as JSONL of the published form, or as WebDataset."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longvita.data.errors import DataError, SampleError
from longvita.data.formats import read_samples
from longvita.data.formats.record import FormatOptions
from longvita.data.media import media_file
from longvita.data.media.media_file import EmbeddedMedia, FilePart, MediaRef, leads_outside, resolve
from longvita.data.media.suffixes import PICTURES, VIDEOS, ending
from longvita.data.quarantine import QuarantinedSample
from longvita.data.sample import Sample
from longvita.data.storage import remote

SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}
"""First bytes of picture files and their suffixes."""
NUMBER_DIGITS = 9


@dataclass(frozen=True)
class ConvertSource:
    """Data files that become one."""

    name: str
    files: tuple[str, ...]
    format: str | None
    """Name of the files' format; by the end of their names when None."""
    options: FormatOptions
    media_root: str

    @property
    def file_name(self) -> str:
        """Stem of the written files."""
        return re.sub(r"[^\w.+()-]+", "_", self.name).strip("_.") or "samples"


class JsonlWriter:
    """Writes NAME.jsonl. Paths stay as they are; other media become files below media/NAME."""

    def __init__(self, folder: Path, target: Path, name: str, media_root: str):
        """folder: where the file is written; target: the final name of that folder."""
        self._folder, self._name, self._old_root = folder, name, media_root
        # Below the media root, paths to new and to old files can be mixed.
        self._is_below = not remote.is_remote(media_root) and not leads_outside(str(target.absolute()), media_root)
        self._prefix = os.path.relpath(target, media_root) if self._is_below else ""
        self._kept, self._written = 0, 0
        self._target = target
        self._file = open(folder / f"{name}.jsonl", "w", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    @property
    def media_root(self) -> str:
        """The folder that the written paths are relative to: the source's, unless media were written elsewhere."""
        return str(self._target) if self._written and not self._is_below else self._old_root

    def add(self, number: int, sample: Sample) -> None:
        """Write a sample. Raises MediaError before anything of it is written, and DataError."""
        media = _media_of(sample)
        paths = [_path_of(ref, self._old_root) for ref, _ in media]
        contents = [_content(*one, self._old_root) if path is None else b"" for one, path in zip(media, paths)]
        self._written += paths.count(None)
        self._kept += len(paths) - paths.count(None)
        if self._written and self._kept and not self._is_below:
            raise DataError(
                f"{self._name} has media below {self._old_root} and media that are written to {self._target}, and one "
                "file has one media root: give an --output below the media root, or --to webdataset"
            )
        new_paths = [
            self._write(f"{number:0{NUMBER_DIGITS}}.{at}.{_ending(*one, content)}", content) if path is None else path
            for at, (one, path, content) in enumerate(zip(media, paths, contents))
        ]
        self._file.write(_as_json(sample, new_paths) + "\n")

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def _write(self, name: str, content: bytes) -> str:
        path = Path("media", self._name, name)
        (self._folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self._folder / path).write_bytes(content)
        return os.path.normpath(os.path.join(self._prefix, path))


class WebDatasetWriter:
    """Writes NAME-000000.tar and so on: each sample's text as .json, then its media. Folders of frames stay paths."""

    def __init__(self, folder: Path, name: str, media_root: str, shard_bytes: int):
        """shard_bytes: a shard with as many bytes is full."""
        self.media_root = media_root
        """The source's: only folders of frames need it."""
        self._folder, self._name, self._shard_bytes = folder, name, shard_bytes
        self._shards = 0
        self._archive: tarfile.TarFile | None = None

    def add(self, number: int, sample: Sample) -> None:
        """Write a sample. Raises MediaError before anything of it is written."""
        key = f"{number:0{NUMBER_DIGITS}}"
        names: list[str] = []
        members: list[tuple[str, bytes]] = []
        for at, (ref, is_video) in enumerate(_media_of(sample)):
            if isinstance(ref, str) and media_file.is_folder(resolve(ref, self.media_root)):
                names.append(ref)
                continue
            content = _content(ref, is_video, self.media_root)
            names.append(f"{key}.{at}.{_ending(ref, is_video, content)}")
            members.append((names[-1], content))
        text = _as_json(sample, names)
        archive = self._open_archive()
        for name, content in ((f"{key}.json", text.encode()), *members):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        archive.members = []  # type: ignore[attr-defined] # It would keep all headers.

    def close(self) -> None:
        """Finish the shard."""
        if self._archive is not None:
            self._archive.close()
            self._archive = None

    def _open_archive(self) -> tarfile.TarFile:
        """The shard for the next sample."""
        if self._archive is not None and self._archive.offset >= self._shard_bytes:
            self.close()
        if self._archive is None:
            path = self._folder / f"{self._name}-{self._shards:06}.tar"
            self._archive = tarfile.open(path, "w")  # noqa: SIM115 - closed by `close`
            self._shards += 1
        return self._archive


Writer = JsonlWriter | WebDatasetWriter


def write_samples(source: ConvertSource, writer: Writer) -> tuple[int, list[QuarantinedSample]]:
    """Write every sample that can be used; the number of written ones, and an entry for each other. Closes the writer.

    Raises DataError if a file of the source does not exist.
    """
    written, broken = 0, []
    try:
        for file in source.files:
            for place, sample in read_samples(file, source.format, source.options):
                try:
                    if isinstance(sample, SampleError):
                        raise sample
                    writer.add(written + 1, sample)
                    written += 1
                except SampleError as error:
                    broken.append(QuarantinedSample.because(error, source.name, file, place.line))
    finally:
        writer.close()
    return written, broken


def _media_of(sample: Sample) -> list[tuple[MediaRef, bool]]:
    """The media of a sample, pictures first, and whether each is a video."""
    return [*((ref, False) for ref in sample.images), *((ref, True) for ref in sample.videos)]


def _path_of(ref: MediaRef, media_root: str) -> str | None:
    """Path of a media file below the media root; None if it is no file there."""
    if isinstance(ref, str):
        return ref
    if not isinstance(ref, FilePart) or ref.size is not None or ref.offset > 0:
        return None
    if remote.is_remote(ref.path) or remote.is_remote(media_root):
        return None
    path = os.path.abspath(ref.path)
    return None if leads_outside(path, media_root) else os.path.relpath(path, media_root)


def _content(ref: MediaRef, is_video: bool, media_root: str) -> bytes:
    """Bytes of a media file. Raises MediaError."""
    source = resolve(ref, media_root)
    with media_file.reader_errors(source, "video" if is_video else "picture"):
        return media_file.read_bytes(source)


def _ending(ref: MediaRef, is_video: bool, content: bytes) -> str:
    """Suffix of a media file; if it has no known one, that of its first bytes."""
    known = ending(ref.name if isinstance(ref, FilePart | EmbeddedMedia) else ref)
    if known in (VIDEOS if is_video else PICTURES):
        return known
    return "mp4" if is_video else next((end for first, end in SIGNATURES.items() if content.startswith(first)), "jpg")


def _as_json(sample: Sample, paths: Sequence[str]) -> str:
    """The published form, with `paths` of the pictures and then of the videos."""
    messages = [
        {"role": turn.role, "content": turn.text, **({} if turn.has_loss else {"loss": False})} for turn in sample.turns
    ]
    images, videos = list(paths[: len(sample.images)]), list(paths[len(sample.images) :])
    media = {key: value for key, value in (("images", images), ("videos", videos)) if value}
    return json.dumps({"messages": messages, **media}, ensure_ascii=False)
