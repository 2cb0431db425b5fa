"""events.jsonl: what happened to a run, a line each: bad steps, failed saves, restarts. Rank 0 writes it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
"""Name of the file below a run's output folder."""


def write_event(output: Path, kind: str, step: int, **fields: Any) -> None:
    """Append an event of a kind after a step; `fields` are written as JSON."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    output.mkdir(parents=True, exist_ok=True)
    with (output / EVENTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": now, "event": kind, "step": step, **fields}) + "\n")


def read_events(output: Path) -> list[dict[str, Any]]:
    """Read the events of a run, oldest first; a last line that a crash cut is left out."""
    path, events = output / EVENTS, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return events
