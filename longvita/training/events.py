"""events.jsonl: what happened to a run, a line each: bad steps, failed saves, restarts. Rank 0 writes it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from longvita.files import append_json, read_json_lines

EVENTS = "events.jsonl"
"""Name of the file below a run's output folder."""


def write_event(output: Path, kind: str, step: int, **fields: Any) -> None:
    """Append an event of a kind after a step; `fields` are written as JSON."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    append_json(output / EVENTS, {"time": now, "event": kind, "step": step, **fields})


def read_events(output: Path) -> list[dict[str, Any]]:
    """Read the events of a run, oldest first."""
    return read_json_lines(output / EVENTS)
