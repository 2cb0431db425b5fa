"""`longvita data convert`: write the samples of a data file, or of a config's training mix, in one of two formats."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longvita.commands.support.options import CaptionPrompt, Columns, DataFormat, Overrides, Roles
from longvita.processes import EXIT_COMPLETE, EXIT_INCOMPLETE

if TYPE_CHECKING:
    from longvita.data.formats.writers import ConvertSource
    from longvita.data.quarantine import QuarantinedSample

TARGETS = ("jsonl", "webdataset")


def convert(
    source: Annotated[
        str,
        typer.Argument(help="YAML file, or data file, folder or pattern.", metavar="CONFIG|FILE", show_default=False),
    ],
    to: Annotated[str, typer.Option(help="jsonl or webdataset.", show_default=False)],
    output: Annotated[str, typer.Option(help="Folder to make.", show_default=False)],
    overrides: Overrides = None,
    chosen: Annotated[list[str] | None, typer.Option("--source", help="Source of CONFIG; may be repeated.")] = None,
    shard_bytes: Annotated[int, typer.Option(min=1, help="webdataset: bytes at which a shard is full.")] = 1 << 30,
    media_root: Annotated[
        str | None, typer.Option(help="Folder that paths are relative to; the config's, or the current one.")
    ] = None,
    data_format: DataFormat = None,
    columns: Columns = None,
    roles: Roles = None,
    prompt: CaptionPrompt = None,
) -> int:
    """Write samples as published JSONL or as WebDataset; exit code 1 if some are broken."""
    from longvita.commands.support.convert_sources import convert_sources
    from longvita.data.errors import DataError
    from longvita.data.formats.record import format_options
    from longvita.data.quarantine import FILE_NAME, QuarantineFile, count_reasons

    target = Path(output)
    draft = target.with_name(f"{target.name}.partial")
    _check_output(to, output, target, draft)
    options = format_options(columns or [], prompt, roles or [])
    sources = convert_sources(source, overrides or [], chosen or [], media_root, data_format, options)
    names = [one.file_name for one in sources]
    if len(set(names)) < len(names):
        raise DataError(f"two sources would both become {max(names, key=names.count)}; give them other names")
    draft.mkdir(parents=True)
    try:
        broken = [entry for one in sources for entry in _write(one, to, draft, target, shard_bytes)]
    except BaseException:
        shutil.rmtree(draft)
        raise
    QuarantineFile(draft / FILE_NAME).add(broken)
    # Only a complete folder gets the name that was asked for.
    draft.rename(target)
    reasons = ", ".join(f"{reason} {count}" for reason, count in count_reasons(broken).items())
    print(f"{target}: {len(broken)} samples quarantined{f' ({reasons})' if reasons else ''}", file=sys.stderr)
    return EXIT_INCOMPLETE if broken else EXIT_COMPLETE


def _check_output(to: str, output: str, target: Path, draft: Path) -> None:
    from longvita.data.errors import DataError
    from longvita.data.storage import remote

    if to not in TARGETS:
        raise DataError(f"--to {to!r} is none of {', '.join(TARGETS)}")
    if remote.is_remote(output):
        raise DataError(f"--output {output} is an address; give a folder of this machine")
    for path in (target, draft):
        if path.exists():
            raise DataError(f"--output {path} exists; remove it or give another folder")


def _write(source: ConvertSource, to: str, draft: Path, target: Path, shard_bytes: int) -> list[QuarantinedSample]:
    """Write one source; an entry for each broken sample."""
    from longvita.data.formats.writers import JsonlWriter, WebDatasetWriter, Writer, write_samples

    writer: Writer
    if to == "jsonl":
        writer = JsonlWriter(draft, target, source.file_name, source.media_root)
    else:
        writer = WebDatasetWriter(draft, source.file_name, source.media_root, shard_bytes)
    written, broken = write_samples(source, writer)
    print(f"{source.name}: {written} samples written; their media_root is {writer.media_root}", file=sys.stderr)
    return broken
