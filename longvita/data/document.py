"""Reads one document: from a sample's place in a file to its tokens and the tiles that this rank decodes.

The result depends on the request alone and needs no torch, so it is identical in the training process and in workers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longvita.config.schema import Config
from longvita.data.chat_template import ChatTemplate, EncodedSample, mark_order
from longvita.data.errors import Reason, SampleError
from longvita.data.formats import make_format
from longvita.data.formats.base import Place
from longvita.data.formats.record import NO_OPTIONS, FormatOptions
from longvita.data.media.facts_store import FactsStore
from longvita.data.media.item import MediaFacts, MediaItem, MediaSettings, decode_tiles, order_media, probe_media
from longvita.data.media.media_file import resolve
from longvita.data.media.packet_store import PacketStore
from longvita.data.sample import Sample, hash_media_names
from longvita.data.storage.retries import WAITS, with_retries
from longvita.errors import shorten


@dataclass(frozen=True)
class DocumentRequest:
    """One planned document of a sequence."""

    path: str
    """Data file."""
    format: str
    """Name of its format."""
    place: Place
    """Where the sample lies in it."""
    names: int
    """Hash of the names of its media (hash_media_names)."""
    source: str
    """Name of the data source."""
    media_root: str
    """Folder that its media paths are relative to."""
    facts: MediaFacts
    """Contents of the headers of its media when it was indexed."""
    max_num_frames: int
    """Limit on the frames of each of its videos: that of the mix, or lower to fit the sequence."""
    length: int
    """Its tokens."""
    num_tiles: int
    """Its tiles and frames."""
    options: FormatOptions = NO_OPTIONS
    """Options of the data file in the config, in addition to its format."""
    wanted: tuple[int, ...] = ()
    """Tiles that this rank decodes, numbered within the document, ascending."""

    @property
    def name(self) -> str:
        """Name of the document in messages."""
        return f"{self.path}:{self.place.line}"

    def decode_error(self, why: str) -> SampleError:
        """Make the error of a document at which a decoder failed without naming the file."""
        reason = Reason.BROKEN_VIDEO if self.facts.videos else Reason.BROKEN_PICTURE
        return SampleError(reason, f"the worker that decoded it {why}")


@dataclass(frozen=True)
class Document:
    """An encoded document and this rank's tiles of it."""

    encoded: EncodedSample
    pixels: np.ndarray
    """uint8 [k, S, S, 3]: the wanted tiles."""
    replaced_frames: int = 0
    """Damaged frames among these tiles, each replaced by the nearest intact one."""


@dataclass(frozen=True)
class DocumentReader:
    """Reads documents with one tokenizer and one set of media settings."""

    template: ChatTemplate
    settings: MediaSettings

    def read(
        self, request: DocumentRequest, heartbeat: Callable[[], None] = lambda: None, out: np.ndarray | None = None
    ) -> Document:
        """Read the tokens and the wanted tiles of one document; tiles go into `out` if given.

        `heartbeat` is called during the work. Raises MediaError if a tile cannot be decoded, RuntimeError if the data
        file changed since it was indexed or cannot be read after several retries.
        """
        sample = _read_sample(request, heartbeat)
        counts = request.facts.frame_counts(self.settings, request.max_num_frames)
        encoded = self.template.encode(sample.turns, request.facts.grids(self.settings), counts)
        if len(encoded.input_ids) != request.length or encoded.num_tiles != request.num_tiles:
            raise _changed(request, f"{len(encoded.input_ids)} tokens, {request.length} in the index")
        items = media_items(sample, request.media_root, request.facts)
        limit, wanted = request.max_num_frames, request.wanted

        def decode() -> Document:
            replaced: list[int] = []
            pixels = decode_tiles(items, self.settings, limit, wanted, heartbeat, out, replaced.append)
            return Document(encoded, pixels, sum(replaced))

        return with_retries(decode, request.name, heartbeat)


def _read_sample(request: DocumentRequest, heartbeat: Callable[[], None]) -> Sample:
    """Read a sample and check that it is the one that was indexed."""
    format = make_format(request.format, request.options)
    try:
        sample = with_retries(
            lambda: format.read(request.path, request.place, bool(request.wanted)), request.name, heartbeat
        )
    except SampleError as error:
        raise _changed(request, error.detail) from error
    except OSError as error:
        raise RuntimeError(
            f"{request.name} cannot be read any more ({shorten(error)}), after {len(WAITS) + 1} tries in "
            f"{sum(WAITS):.0f} s; fix: start the run again when the file is available"
        ) from error
    if hash_media_names(sample) != request.names:
        raise _changed(request, "other pictures or videos")
    return sample


def _changed(request: DocumentRequest, detail: str) -> RuntimeError:
    return RuntimeError(
        f"{request.name} differs from its index ({detail}): the file changed during the run; "
        "fix: start the run again, which rebuilds the index"
    )


def index_folder(config: Config) -> Path:
    """Return the folder of the indexes, packing plans, packet tables and media facts, which the runs next to each other
    share.
    """
    return Path(config.data.index_cache or Path(config.output).parent / "index")


def packet_table_folder(config: Config) -> Path:
    """Return the folder of the packet tables of a run."""
    return index_folder(config) / "packet_tables"


def media_facts_folder(config: Config) -> Path:
    """Return the folder of the facts from headers of media files."""
    return index_folder(config) / "media_facts"


def media_settings(config: Config) -> MediaSettings:
    """Return the media settings of a config."""
    return MediaSettings(
        image_size=config.model.vision.image_size,
        max_num_tiles=config.data.max_num_tiles,
        max_num_frames=config.data.max_num_frames,
        max_fps=config.data.max_fps,
        stall_seconds=config.data.decode_timeout_seconds,
        decode_threads=config.data.decode_threads,
        reduced_jpeg=config.data.reduced_jpeg,
        frame_cache=config.data.frame_cache,
        frame_cache_bytes=config.data.frame_cache_bytes,
        frame_sampling=config.data.frame_sampling,
        max_damaged_share=config.data.max_damaged_share,
        packet_tables=str(packet_table_folder(config)),
    )


def probe_sample(
    sample: Sample,
    media_root: str | os.PathLike,
    max_fps: float | None,
    folder_fps: float | None = None,
    store: PacketStore | None = None,
    known: FactsStore | None = None,
) -> MediaFacts:
    """Read the headers of a sample's media; the other arguments as for `probe_media`. Raises MediaError."""
    return probe_media(*_media_files(sample, media_root), max_fps, folder_fps, store, known)


def media_items(sample: Sample, media_root: str | os.PathLike, facts: MediaFacts) -> list[MediaItem]:
    """Order a sample's media by its marks. Raises MediaError for a path that leads outside the media root."""
    return order_media(mark_order(sample.turns, sample.marks), *_media_files(sample, media_root), facts)


def _media_files(sample: Sample, media_root: str | os.PathLike) -> tuple[Sequence, Sequence]:
    """Return the files of a sample's pictures and those of its videos."""
    pictures = [resolve(path, media_root) for path in sample.images]
    return pictures, [resolve(path, media_root) for path in sample.videos]
