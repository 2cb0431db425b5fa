"""`longvita data retry`: check quarantined samples again, after their files were fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longvita.commands.support.options import ConfigFile, Overrides
from longvita.processes import EXIT_COMPLETE, EXIT_INCOMPLETE


def retry(
    quarantine: Annotated[Path, typer.Argument(help="Quarantine file of a run.", metavar="QUARANTINE_FILE")],
    config: ConfigFile,
    overrides: Overrides = None,
) -> int:
    """Check quarantined samples again; usable ones leave the file. Exit code 1 while some are left."""
    from longvita.commands.support.config_file import load_config
    from longvita.data.audit.retry_quarantined import retry_quarantined
    from longvita.data.quarantine import count_reasons, reasons_text

    result = retry_quarantined(quarantine, load_config(config, overrides))
    for entry in result.usable:
        print(f"{entry.path}:{entry.line}: can be used now ({entry.reason} before)")
    for entry in result.left:
        unknown = (entry.source, entry.path) in result.unknown
        note = f" (no file of source {entry.source!r} in this config)" if unknown else ""
        print(f"{entry.path}:{entry.line}: {entry.reason}: {entry.detail}{note}")
    reasons = reasons_text(count_reasons(result.left))
    print(f"{len(result.usable)} samples can be used now, {len(result.left)} are left: {reasons}")
    return EXIT_INCOMPLETE if result.left else EXIT_COMPLETE
