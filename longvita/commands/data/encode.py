"""`longvita data encode`: print the samples of a data file as the model gets them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from longvita.commands.support.options import CaptionPrompt, Columns, DataFile, DataFormat, Roles
from longvita.processes import EXIT_COMPLETE, EXIT_INCOMPLETE

if TYPE_CHECKING:
    from longvita.data.chat_template import EncodedSample
    from longvita.data.quarantine import QuarantinedSample


def encode(
    file: DataFile,
    tokenizer: Annotated[str, typer.Option(help="Tokenizer folder.", show_default=False)],
    data_format: DataFormat = None,
    columns: Columns = None,
    roles: Roles = None,
    prompt: CaptionPrompt = None,
    media_root: Annotated[str, typer.Option(help="Folder that picture and video paths are relative to.")] = ".",
    max_frames: Annotated[int, typer.Option(min=1, help="Most frames sampled from one video.")] = 63,
    max_fps: Annotated[float, typer.Option(min=1e-6, help="Most frames sampled from one second of video.")] = 1.0,
    max_tiles: Annotated[int, typer.Option(min=1, help="Most tiles a picture is cut into.")] = 12,
    image_size: Annotated[int, typer.Option(min=1, help="Side of a tile, pixels.")] = 448,
    tokens_per_tile: Annotated[int, typer.Option(min=1, help="Tokens of a tile.")] = 256,
    headers_only: Annotated[bool, typer.Option("--headers-only", help="Measure media, do not decode them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a sample.")] = False,
) -> int:
    """Print samples as the model gets them; broken ones on stderr, and exit code 1 if there are any."""
    from longvita.data.chat_template import ChatTemplate
    from longvita.data.errors import SampleError
    from longvita.data.formats.paths import files_of_entry
    from longvita.data.formats.record import format_options
    from longvita.data.media.item import MediaSettings
    from longvita.data.quarantine import QuarantinedSample, count_reasons
    from longvita.data.report.encoded import EncodeOptions, encode_samples
    from longvita.data.tokenizer import load_tokenizer

    settings = MediaSettings(image_size, max_tiles, max_frames, max_fps)
    options = EncodeOptions(
        settings, media_root, headers_only, data_format, format_options(columns or [], prompt, roles or [])
    )
    template = ChatTemplate(load_tokenizer(tokenizer), tokens_per_tile)
    encoded, broken = 0, []
    files = files_of_entry("", file)
    for path, line, result in encode_samples(files, options, template):
        where = f"{path}: " if len(files) > 1 else ""
        if isinstance(result, SampleError):
            broken.append(QuarantinedSample.because(result, "", path, line))
            _print_broken(broken[-1], where, as_json)
            continue
        encoded += 1
        print(_as_json(result) if as_json else where + _as_text(line, result), flush=True)
    reasons = ", ".join(f"{reason} {count}" for reason, count in count_reasons(broken).items())
    print(f"{encoded} samples encoded, {len(broken)} broken{f' ({reasons})' if reasons else ''}", file=sys.stderr)
    return EXIT_INCOMPLETE if broken else EXIT_COMPLETE


def _as_json(encoded: EncodedSample) -> str:
    arrays = {name: getattr(encoded, name).tolist() for name in ("input_ids", "labels", "tile_starts")}
    return json.dumps(arrays | {"num_tiles": encoded.num_tiles})


def _as_text(line: int, encoded: EncodedSample) -> str:
    import numpy as np

    from longvita.data.chat_template import IGNORED_LABEL

    loss = int(np.count_nonzero(encoded.labels != IGNORED_LABEL))
    return f"line {line}: {len(encoded.input_ids)} tokens, {loss} with loss, {encoded.num_tiles} tiles"


def _print_broken(entry: QuarantinedSample, where: str, as_json: bool) -> None:
    if as_json:
        about = {"path": entry.path, "line": entry.line, "reason": entry.reason, "detail": entry.detail}
        print(json.dumps(about), file=sys.stderr)
    else:
        print(f"{where}line {entry.line}: {entry.reason}: {entry.detail}", file=sys.stderr)
