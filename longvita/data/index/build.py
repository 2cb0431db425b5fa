"""Indexing: each piece of a data file is parsed, tokenized and its media's headers are opened; nothing is decoded.

Pieces are independent, and each is put into the cache folder when it is done, so that an index which was interrupted
goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from longvita.data.chat_template import ChatTemplate
from longvita.data.errors import SampleError
from longvita.data.formats import make_format
from longvita.data.formats.base import Format, Part
from longvita.data.formats.record import NO_OPTIONS, FormatOptions
from longvita.data.index.columns import FileIndex, IndexBuilder
from longvita.data.index.probe import HeaderProbe, ProbeMark
from longvita.data.quarantine import QuarantinedSample
from longvita.data.sample import media_names

PART_BYTES = 32 << 20
"""Bytes of a piece: some seconds' work."""


UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)
"""What numpy and json raise for files that are not there, or not whole."""


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
        """The piece that `save` wrote. Raises one of UNREADABLE."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays["about"].tobytes())
        broken = tuple(
            QuarantinedSample.from_json(line) for line in arrays["broken"].tobytes().decode().split("\n") if line
        )
        index = FileIndex(arrays["rows"], arrays["media"], arrays["rates"], broken)
        return cls(Part(**about["part"]), about["digest"], about["lines"], index)


def index_part(path: str, part: Part, template: ChatTemplate, settings: IndexSettings, probe: HeaderProbe) -> Piece:
    """The index of one part of a file; see Format.samples and HeaderProbe.facts for what is set aside."""
    format, builder, lines = settings.make_format(), IndexBuilder(), 0
    digest = format.digest(path, part)
    for place, sample in format.samples(path, part):
        lines = place.line
        try:
            if isinstance(sample, SampleError):
                raise sample
            if sample is not None:
                facts = probe.facts(sample, place.line, f"{path}[{part.start}-{part.end}]:{place.line}")
                builder.add(place, media_names(sample), template.text_length(sample.turns), facts)
        except SampleError as error:
            builder.quarantined(QuarantinedSample.because(error, settings.source, path, place.line))
    return Piece(part, digest, lines, builder.index())


def index_part_once(
    path: str, part: Part, template: ChatTemplate, settings: IndexSettings, folder: Path, seconds: float | None
) -> Piece:
    """`index_part`, from `folder` where an earlier pass left it and it is of the same bytes; it is left there.

    seconds: as for HeaderProbe.
    """
    file = piece_file(folder, part)
    with contextlib.suppress(*UNREADABLE):  # It is not there, or was cut when the machine went down.
        piece = Piece.load(file)
        if piece.digest == settings.make_format().digest(path, part):
            return piece
    mark = ProbeMark(file)
    piece = index_part(
        path, part, template, settings, HeaderProbe(settings.media_root, settings.max_fps, mark, seconds)
    )
    piece.save(file)
    mark.remove()
    return piece


def piece_file(folder: Path, part: Part) -> Path:
    """Where the piece of a part lies until all are there."""
    return folder / f"{part.start}-{part.end}.npz"
