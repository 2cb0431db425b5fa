"""`longvita data encode`: samples of a data file as the model gets them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from longvita.data.chat_template import IGNORED_LABEL, ChatTemplate, EncodedSample, mark_order
from longvita.data.document import probe_sample
from longvita.data.errors import SampleError
from longvita.data.formats import read_samples
from longvita.data.formats.paths import files_of_entry
from longvita.data.formats.record import NO_OPTIONS, FormatOptions
from longvita.data.media.item import MAX_DECODED_TILES, MediaSettings, decode_tiles, order_media
from longvita.data.media.media_file import resolve
from longvita.data.quarantine import QuarantinedSample, count_reasons
from longvita.data.sample import Sample
from longvita.data.tokenizer import load_tokenizer

ALL_ENCODED, SOME_BROKEN = 0, 1
"""Exit codes."""


@dataclass(frozen=True)
class EncodeOptions:
    """What `longvita data encode` is asked for."""

    file: str
    """As in data_paths of a source: path or address of a data file or folder, pattern, range or list of shards."""
    tokenizer: str
    media_root: str
    settings: MediaSettings
    tokens_per_tile: int
    headers_only: bool
    """Whether pictures and videos are measured by their headers alone, not decoded."""
    as_json: bool
    format: str | None = None
    """Name of the file's format; by the end of its name when None."""
    options: FormatOptions = NO_OPTIONS


def encode(options: EncodeOptions) -> int:
    """Prints each sample's tokens on stdout, as one JSON object or one line to read, and what is broken on stderr.

    Returns the exit code: 0 if every sample could be encoded, 1 if some could not. Raises DataError if there is no such
    file, TokenizerError for the tokenizer.
    """
    template = ChatTemplate(load_tokenizer(options.tokenizer), options.tokens_per_tile)
    encoded, broken = 0, []
    files = files_of_entry("", options.file)
    for file, line, result in _encode_lines(files, options, template):
        where = f"{file}: " if len(files) > 1 else ""
        if isinstance(result, SampleError):
            broken.append(QuarantinedSample.because(result, "", file, line))
            _print_broken(broken[-1], where, options.as_json)
            continue
        encoded += 1
        print(_as_json(result) if options.as_json else where + _as_text(line, result), flush=True)
    reasons = ", ".join(f"{reason} {count}" for reason, count in count_reasons(broken).items())
    print(f"{encoded} samples encoded, {len(broken)} broken{f' ({reasons})' if reasons else ''}", file=sys.stderr)
    return SOME_BROKEN if broken else ALL_ENCODED


def _encode_lines(
    files: Sequence[str], options: EncodeOptions, template: ChatTemplate
) -> Iterator[tuple[str, int, EncodedSample | SampleError]]:
    for file in files:
        for place, sample in read_samples(file, options.format, options.options):
            try:
                if isinstance(sample, SampleError):
                    raise sample
                yield file, place.line, _encode_sample(sample, options, template)
            except SampleError as error:
                yield file, place.line, error


def _encode_sample(sample: Sample, options: EncodeOptions, template: ChatTemplate) -> EncodedSample:
    settings = options.settings
    facts = probe_sample(sample, options.media_root, settings.max_fps)
    encoded = template.encode(sample.turns, facts.grids(settings), facts.frame_counts(settings))
    if not options.headers_only:
        pictures = [resolve(path, options.media_root) for path in sample.images]
        videos = [resolve(path, options.media_root) for path in sample.videos]
        items = order_media(mark_order(sample.turns), pictures, videos, facts)
        for start in range(0, encoded.num_tiles, MAX_DECODED_TILES):
            wanted = range(start, min(start + MAX_DECODED_TILES, encoded.num_tiles))
            decode_tiles(items, settings, settings.max_num_frames, wanted)
    return encoded


def _as_json(encoded: EncodedSample) -> str:
    return json.dumps(
        {
            "input_ids": encoded.input_ids.tolist(),
            "labels": encoded.labels.tolist(),
            "tile_starts": encoded.tile_starts.tolist(),
            "num_tiles": encoded.num_tiles,
        }
    )


def _as_text(line: int, encoded: EncodedSample) -> str:
    loss = int(np.count_nonzero(encoded.labels != IGNORED_LABEL))
    return f"line {line}: {len(encoded.input_ids)} tokens, {loss} with loss, {encoded.num_tiles} tiles"


def _print_broken(entry: QuarantinedSample, where: str, as_json: bool) -> None:
    if as_json:
        about = {"path": entry.path, "line": entry.line, "reason": entry.reason, "detail": entry.detail}
        print(json.dumps(about), file=sys.stderr)
    else:
        print(f"{where}line {entry.line}: {entry.reason}: {entry.detail}", file=sys.stderr)
