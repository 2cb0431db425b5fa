"""Index one part of a data file: parse its samples, count their text tokens, read the headers of their media files.

Nothing is decoded. Parts are independent, and each is saved when it is done, so that an interrupted index resumes.
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
from longvita.data.document import probe_sample
from longvita.data.errors import SampleError
from longvita.data.formats import make_format
from longvita.data.formats.base import Format, Part
from longvita.data.formats.record import NO_OPTIONS, FormatOptions
from longvita.data.index.columns import COLUMNS, FileIndex, IndexBuilder
from longvita.data.index.header_probe import CrashRecord, HeaderProbe
from longvita.data.media.facts_store import FactsStore
from longvita.data.media.item import MediaFacts
from longvita.data.media.packet_store import PacketStore
from longvita.data.quarantine import QuarantinedLine
from longvita.data.sample import Sample, hash_media_names

PART_BYTES = 32 << 20
"""Bytes of a part: indexing one takes some seconds."""
UNREADABLE = (FileNotFoundError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)
"""What numpy and json raise for missing and for truncated files; any other OSError is no damage of them."""


@dataclass(frozen=True)
class KnownMedia:
    """Folders with what was read of media files before."""

    packet_tables: str
    """Packet tables of video files."""
    facts: str
    """Facts from headers."""
    is_renewed: bool = False
    """Whether each header is read although its facts are known."""


@dataclass(frozen=True)
class IndexSettings:
    """What an index depends on in addition to its data file."""

    media_root: str
    """Folder that media paths are relative to."""
    format: str = "jsonl"
    """Name of the data file's format."""
    options: FormatOptions = NO_OPTIONS
    """The other settings of the file in the config."""
    folder_fps: float | None = None
    """Frames per second of folders of frames; as for `probe_video`."""
    known: KnownMedia | None = None
    """What is known of media files, on which the index does not depend."""

    def probe(self, sample: Sample, facts: FactsStore | None = None) -> MediaFacts:
        """Read the media headers of a sample, except those in `facts`. Raises MediaError."""
        store = PacketStore(Path(self.known.packet_tables)) if self.known else None
        return probe_sample(sample, self.media_root, None, self.folder_fps, store, facts)

    def open_facts(self) -> contextlib.AbstractContextManager[FactsStore | None]:
        """Open the store of the facts of media files; yields None where there is none."""
        if self.known is None:
            return contextlib.nullcontext()
        return FactsStore(Path(self.known.facts), self.known.is_renewed)

    def make_format(self) -> Format:
        """Return the format of the data file."""
        return make_format(self.format, self.options)


@dataclass(frozen=True)
class IndexPart:
    """The index of one part of a file."""

    part: Part
    digest: str
    """Digest of the part when it was indexed."""
    lines: int
    """Lines or records of the part, blank and quarantined ones included."""
    index: FileIndex

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        about = {"part": asdict(self.part), "digest": self.digest, "lines": self.lines, "unused": self.index.unused}
        quarantined = "\n".join(entry.to_json() for entry in self.index.quarantined)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with open(draft, "wb") as file:
            np.savez(
                file,
                **{name: getattr(self.index, name) for name in COLUMNS},
                about=np.frombuffer(json.dumps(about).encode(), np.uint8),
                quarantined=np.frombuffer(quarantined.encode(), np.uint8),
            )
        os.replace(draft, path)

    @classmethod
    def load(cls, path: Path) -> IndexPart:
        """Read what `save` wrote. Raises one of UNREADABLE, OSError."""
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays["about"].tobytes())
        lines = arrays["quarantined"].tobytes().decode().split("\n")
        quarantined = tuple(QuarantinedLine.from_json(line) for line in lines if line)
        index = FileIndex(**{name: arrays[name] for name in COLUMNS}, quarantined=quarantined, unused=about["unused"])
        return cls(Part(**about["part"]), about["digest"], about["lines"], index)


def index_part(path: str, part: Part, template: ChatTemplate, settings: IndexSettings, probe: HeaderProbe) -> IndexPart:
    """Index one part of a file. Samples whose parsing or media headers raise SampleError are quarantined."""
    format, builder, lines = settings.make_format(), IndexBuilder(), 0
    digest = format.digest(path, part)
    for place, sample in format.samples(path, part):
        lines = place.line
        try:
            if isinstance(sample, SampleError):
                raise sample
            if sample is not None:
                facts = probe.facts(sample, place.line, f"{path}[{part.start}-{part.end}]:{place.line}")
                length = template.text_length(sample.turns, sample.marks)
                builder.add(place, hash_media_names(sample), length, facts, sample.unused)
        except SampleError as error:
            builder.quarantine(QuarantinedLine(place.line, error.reason, error.detail))
    return IndexPart(part, digest, lines, builder.index())


def load_or_index_part(
    path: str, part: Part, template: ChatTemplate, settings: IndexSettings, folder: Path, seconds: float | None
) -> IndexPart:
    """Load the index of a part from `folder` if an interrupted pass saved it there and its bytes are unchanged.

    Otherwise index the part and save it there. seconds: as for HeaderProbe.
    """
    file = part_file(folder, part)
    with contextlib.suppress(OSError, *UNREADABLE):  # Missing, or truncated when the machine crashed.
        saved = IndexPart.load(file)
        if saved.digest == settings.make_format().digest(path, part):
            return saved
    crashes = CrashRecord(file)
    with settings.open_facts() as facts:
        probe = HeaderProbe(settings.media_root, settings.probe, crashes, seconds, facts)
        indexed = index_part(path, part, template, settings, probe)
    indexed.save(file)
    crashes.remove()
    return indexed


def part_file(folder: Path, part: Part) -> Path:
    """File that holds the index of a part until all parts are indexed."""
    return folder / f"{part.start}-{part.end}.npz"
