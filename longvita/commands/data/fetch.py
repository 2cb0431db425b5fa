"""`longvita data fetch`: download the data files of a mix, and archives of its images and videos."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longvita.commands.support.options import ConfigFile, JSONOption, Overrides
from longvita.processes import EXIT_COMPLETE, EXIT_INCOMPLETE

if TYPE_CHECKING:
    from longvita.config.schema import Config


@dataclasses.dataclass(frozen=True)
class FetchOptions:
    """What is fetched, from where, and to which folder."""

    sources: Annotated[list[str] | None, typer.Option("--source", help="Source to fetch; may be repeated.")] = None
    folder: Annotated[str | None, typer.Option("--to", help="Folder to fill; data.data_root when absent.")] = None
    media: Annotated[bool, typer.Option("--media", help="Archives of pictures and videos too.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be fetched, and how much.")] = False
    endpoint: Annotated[str | None, typer.Option(help="Address of the Hub or of a mirror.")] = None
    workers: Annotated[int, typer.Option(min=1, help="Files that are fetched at once.")] = 4
    as_json: JSONOption = False


def fetch(config: ConfigFile, overrides: Overrides = None, *, options: FetchOptions) -> int:
    """Download the data files of a mix from the Hugging Face Hub; exit code 1 if some did not come."""
    from longvita.commands.support.config_file import load_config

    return fetch_files(load_config(config, overrides), options)


def fetch_files(config: Config, options: FetchOptions) -> int:
    """Fill a folder and print the state of each file; returns exit code 0 if all came (or would), 1 if some did not.

    Raises DataError if a file would lie outside the folder, the disk is too small, or another fetch fills the folder.
    """
    from longvita.commands.support.fetch_tables import PROBLEMS, download_with_progress, print_report
    from longvita.data.fetch.download import Downloader, only_fetch
    from longvita.data.fetch.wanted import FetchState, choose_sources, wanted_files

    chosen = choose_sources(config, options.sources or ())
    wanted = wanted_files(config, chosen, options.media)
    root = Path(options.folder or config.data.data_root).expanduser()
    downloader = Downloader(root, options.endpoint)
    with contextlib.nullcontext() if options.dry_run else only_fetch(root):
        files = downloader.list_files(wanted)
        for file in files:
            downloader.check(file, record=not options.dry_run)
        missing = [file for file in files if file.state == FetchState.WANTED]
        if missing and not options.dry_run:
            download_with_progress(downloader, missing, root, options.workers)
    if options.as_json:
        facts = {name: {"found_at": dataset.found_at, "licence": dataset.licence} for name, dataset in chosen.items()}
        keys = ("source", "repository", "path", "target", "state", "detail")
        rows = [{**{key: getattr(file, key) for key in keys}, "bytes": file.size} for file in files]
        print(json.dumps({"folder": str(root), "dry_run": options.dry_run, "sources": facts, "files": rows}))
    else:
        print_report(chosen, files, root, options.dry_run)
    return EXIT_INCOMPLETE if any(file.state in PROBLEMS for file in files) else EXIT_COMPLETE
