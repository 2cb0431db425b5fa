"""Samples of a data file as the model gets them: the tokens of each, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from longvita.data.chat_template import ChatTemplate, EncodedSample
from longvita.data.document import media_items, probe_sample
from longvita.data.errors import SampleError
from longvita.data.formats import read_samples
from longvita.data.formats.record import NO_OPTIONS, FormatOptions
from longvita.data.media.item import MAX_DECODED_TILES, MediaSettings, decode_tiles
from longvita.data.sample import Sample


@dataclass(frozen=True)
class EncodeOptions:
    """How the samples of a data file are read and encoded."""

    settings: MediaSettings
    media_root: str = "."
    """Folder that picture and video paths are relative to."""
    headers_only: bool = False
    """Whether pictures and videos are only measured by their headers, not decoded."""
    format: str | None = None
    """Name of the file's format; by the end of its name when None."""
    options: FormatOptions = NO_OPTIONS


def encode_samples(
    files: Sequence[str], options: EncodeOptions, template: ChatTemplate
) -> Iterator[tuple[str, int, EncodedSample | SampleError]]:
    """The file, the line and the tokens of each sample, or its error. Raises DataError if a file does not exist."""
    for file in files:
        for place, sample in read_samples(file, options.format, options.options):
            try:
                if isinstance(sample, SampleError):
                    raise sample
                yield file, place.line, _encode(sample, options, template)
            except SampleError as error:
                yield file, place.line, error


def _encode(sample: Sample, options: EncodeOptions, template: ChatTemplate) -> EncodedSample:
    settings = options.settings
    facts = probe_sample(sample, options.media_root, settings.max_fps)
    encoded = template.encode(sample.turns, facts.grids(settings), facts.frame_counts(settings))
    if not options.headers_only:
        items = media_items(sample, options.media_root, facts)
        for start in range(0, encoded.num_tiles, MAX_DECODED_TILES):
            wanted = range(start, min(start + MAX_DECODED_TILES, encoded.num_tiles))
            decode_tiles(items, settings, settings.max_num_frames, wanted)
    return encoded
