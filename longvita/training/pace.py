"""The measured times of a run's steps and saves, by which it stops before a step that would not end in time."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from pathlib import Path

from longvita.files import write_atomically

PACE = "pace.json"
"""Name of the file below a run's output folder, for its next start and for the script that submits it."""
NEWEST = 20
"""Steps and saves of which the longest counts."""


class Pace:
    """Seconds of the newest steps, saves and validations of this process, and of an earlier start for those to come."""

    def __init__(self, output: Path):
        self._path = output / PACE
        stored: dict[str, float] = {}
        with contextlib.suppress(OSError, ValueError):  # a first start, or a file that a crash cut
            stored = json.loads(self._path.read_text(encoding="utf-8"))
        self.steps: deque[float] = deque([stored.get("step_seconds", 0.0)], maxlen=NEWEST)
        self.saves: deque[float] = deque([stored.get("save_seconds", 0.0)], maxlen=NEWEST)
        self.validations: deque[float] = deque([stored.get("validation_seconds", 0.0)], maxlen=NEWEST)

    def needed(self, validates: bool) -> float:
        """Seconds that the next step and a save after it take, with a validation between them if it `validates`."""
        return max(self.steps) + max(self.saves) + (max(self.validations) if validates else 0.0)

    def write(self) -> None:
        """Write the file, if the disk allows; one rank does."""
        seconds = {
            "step_seconds": max(self.steps),
            "save_seconds": max(self.saves),
            "validation_seconds": max(self.validations),
        }
        with contextlib.suppress(OSError):
            write_atomically(self._path, json.dumps(seconds) + "\n")
