"""Indexing: each piece of a data file is parsed, tokenized and its media's headers are opened; nothing is decoded.

Pieces are independent: processes share them, and each is put into the cache folder when it is done, so that an index
which was interrupted goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from longvita.data.document import probe_sample
from longvita.data.errors import DataError, Reason, SampleError
from longvita.data.formats import make_format
from longvita.data.formats.base import Format, Part
from longvita.data.index.columns import FileIndex, IndexBuilder
from longvita.data.index.probe_mark import ENDS_TO_BLAME, ProbeMark, ends_noted
from longvita.data.media.item import MediaFacts
from longvita.data.quarantine import SetAside
from longvita.data.record import NO_OPTIONS, FormatOptions
from longvita.data.sample import Sample, media_names
from longvita.data.template import ChatTemplate
from longvita.data.tokenizer import LongVITATokenizer

logger = logging.getLogger(__name__)

PART_BYTES = 32 << 20
"""Bytes of a piece: some seconds' work."""


@dataclass(frozen=True)
class IndexSettings:
    """What an index depends on beside its data file."""

    source: str
    """Name of the data source, for the quarantine file."""
    media_root: str
    """Folder that media paths are relative to."""
    max_fps: float
    """Most frames taken from one second of video, 1/s."""
    format: str = "jsonl"
    """Name of the data file's format."""
    options: FormatOptions = NO_OPTIONS
    """What else the config says about the file."""

    def make_format(self) -> Format:
        """The file's format."""
        return make_format(self.format, self.options)


@dataclass(frozen=True)
class Piece:
    """The index of one part of a file."""

    part: Part
    digest: str
    """Of the part when it was indexed."""
    lines: int
    """Lines or records of the part."""
    index: FileIndex

    def save(self, path: Path) -> None:
        """Writes the piece in one step."""
        about = {"part": asdict(self.part), "digest": self.digest, "lines": self.lines}
        broken = "\n".join(entry.to_json() for entry in self.index.broken)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with open(draft, "wb") as file:
            np.savez(
                file,
                rows=self.index.rows,
                media=self.index.media,
                rates=self.index.rates,
                about=np.frombuffer(json.dumps(about).encode(), np.uint8),
                broken=np.frombuffer(broken.encode(), np.uint8),
            )
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path) -> Piece:
        """The piece that `save` wrote."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays["about"].tobytes())
        broken = tuple(SetAside.from_json(line) for line in arrays["broken"].tobytes().decode().split("\n") if line)
        index = FileIndex(arrays["rows"], arrays["media"], arrays["rates"], broken)
        return cls(Part(**about["part"]), about["digest"], about["lines"], index)


def index_part(path: str, part: Part, template: ChatTemplate, settings: IndexSettings, mark: ProbeMark) -> Piece:
    """The index of one part of a file; see Format.samples for what is set aside, and ProbeMark for what more."""
    format, builder, lines = settings.make_format(), IndexBuilder(), 0
    digest = format.digest(path, part)
    for place, sample in format.samples(path, part):
        lines = place.line
        try:
            if isinstance(sample, SampleError):
                raise sample
            if sample is not None:
                facts = _probe(sample, place.line, settings, mark)
                builder.add(place, media_names(sample), template.text_length(sample.turns), facts)
        except SampleError as error:
            builder.set_aside(SetAside.because(error, settings.source, path, place.line))
    return Piece(part, digest, lines, builder.index())


def _probe(sample: Sample, line: int, settings: IndexSettings, mark: ProbeMark) -> MediaFacts:
    if line in mark.blamed:
        reason = Reason.BROKEN_VIDEO if sample.videos else Reason.BROKEN_PICTURE
        raise SampleError(reason, f"the process that opened its headers ended, {ENDS_TO_BLAME} times")
    with mark.at(line) if sample.images or sample.videos else contextlib.nullcontext():
        return probe_sample(sample, settings.media_root, settings.max_fps)


def index_parts(
    path: str,
    parts: Sequence[Part],
    template: ChatTemplate,
    settings: IndexSettings,
    folder: Path,
    processes: int,
) -> Iterator[Piece]:
    """The pieces of `parts`, as they are done: from `folder`, where an interrupted pass left them, or made now."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(path, part, settings, str(_file_of(folder, part))) for part in parts]
    if min(processes, len(tasks)) < 2:
        yield from (_work(template, *task) for task in tasks)
        return
    # Spawned, not forked: the process that asks may hold threads, locks and a device.
    context = multiprocessing.get_context("spawn")
    setup = (template.tokenizer.to_json(), template.tokens_per_tile)
    size, done, before = min(processes, len(tasks)), set[str](), (-1, -1)
    while len(done) < len(tasks):
        try:
            with ProcessPoolExecutor(size, context, _set_up, setup) as pool:
                left = [task for task in tasks if task[-1] not in done]
                for future in as_completed([pool.submit(_work_in_pool, *task) for task in left]):
                    file = future.result()
                    done.add(file)
                    yield Piece.load(Path(file))
        except BrokenProcessPool:
            now = (len(done), ends_noted(folder))
            if now == before:
                raise DataError(
                    f"the processes that index {path} end again and again; is there memory enough?"
                ) from None
            before = now
            logger.warning("%s: a process that indexed it ended; its part is begun again", path)
            size = 1  # Alone, a process that ends is at the sample that ended it, and no other is ended with it.


_TEMPLATE: list[ChatTemplate] = []
"""The template of a process of the pool, which is set up once."""


def _set_up(tokenizer: str, tokens_per_tile: int) -> None:
    _TEMPLATE[:] = [ChatTemplate(LongVITATokenizer.from_json(tokenizer), tokens_per_tile)]


def _work_in_pool(path: str, part: Part, settings: IndexSettings, file: str) -> str:
    _work(_TEMPLATE[0], path, part, settings, file)
    return file


def _work(template: ChatTemplate, path: str, part: Part, settings: IndexSettings, file: str) -> Piece:
    """A piece, from its file if that is of the same bytes."""
    if os.path.exists(file):
        piece = Piece.load(Path(file))
        if piece.digest == settings.make_format().digest(path, part):
            return piece
    mark = ProbeMark(Path(file))
    piece = index_part(path, part, template, settings, mark)
    piece.save(Path(file))
    mark.remove()
    return piece


def _file_of(folder: Path, part: Part) -> Path:
    return folder / f"{part.start}-{part.end}.npz"
