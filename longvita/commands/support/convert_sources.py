"""The sources of `longvita data convert`: a data file, or those of a config's training mix."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from longvita.commands.support.config_file import load_config
from longvita.config.schema import Config
from longvita.data.errors import DataError
from longvita.data.formats.paths import data_file, files_of_entry
from longvita.data.formats.record import NO_OPTIONS, FormatOptions
from longvita.data.formats.writers import ConvertSource
from longvita.data.mix.catalog import files_of
from longvita.data.mix.missing_files import describe_missing, missing_files


def convert_sources(
    source: str,
    overrides: list[str],
    chosen: Sequence[str],
    media_root: str | None,
    data_format: str | None,
    options: FormatOptions,
) -> list[ConvertSource]:
    """The sources of a data file, folder, pattern or address, or of a config (.yaml). Raises DataError.

    chosen: names of a config's sources; all if there are none. media_root: folder that picture and video paths are
    relative to; the config's, or the current one, when None.
    """
    if source.endswith((".yaml", ".yml")):
        if data_format is not None or options != NO_OPTIONS:
            raise DataError("--format, --column, --role and --prompt are for a data file; a config has its own")
        return _sources_of_config(load_config(source, overrides), chosen, media_root)
    if overrides or chosen:
        raise DataError(f"--source and section.field=value are for a config (.yaml), and {source} is a data file")
    files = tuple(files_of_entry("", source))
    return [ConvertSource(Path(source.rstrip("/")).stem, files, data_format, options, media_root or ".")]


def _sources_of_config(config: Config, chosen: Sequence[str], media_root: str | None) -> list[ConvertSource]:
    """The sources of a training mix except those with ratio 0; each sample counts once."""
    data = config.data
    unknown = [name for name in chosen if name not in data.dataset]
    if unknown:
        raise DataError(f"--source {unknown[0]}: the mix has no such source; it has {', '.join(data.dataset)}")
    wanted = {name: dataset for name, dataset in data.dataset.items() if name in chosen or not chosen}
    places = files_of(config, wanted)
    missing = missing_files(config, wanted)
    if missing:
        print(f"data.allow_missing leaves them out: {describe_missing(missing)}", file=sys.stderr)
    sources = []
    for name, dataset in wanted.items():
        files = tuple(data_file(data, path) for source, _, path in places if source == name)
        if files:
            own_root = data.media_root if dataset.media_root is None else dataset.media_root
            root = own_root if media_root is None else media_root
            options = FormatOptions.of(dataset)
            sources.append(ConvertSource(name, files, dataset.format, options, root))
    return sources
