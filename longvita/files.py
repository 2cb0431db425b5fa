"""Atomic writes of files, synchronized to disk."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is complete or absent at any time, also after a crash; text as UTF-8."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def append_json(path: Path, value: Any) -> None:
    """Append a value as a line of JSON, for a file that a run can do without: a full disk costs a warning.

    A line that a crash or a full disk cut stays a line of its own.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(b"\n" * ends_with_partial_line(path) + json.dumps(value).encode() + b"\n")
    except OSError as error:
        logger.warning("%s: a line is not written: %s", path, error)


def ends_with_partial_line(path: Path) -> bool:
    """Return whether a crash or a full disk cut the last write to a file of lines."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        return file.read() not in (b"", b"\n")


def read_json_lines(path: Path) -> list[Any]:
    """Read the lines that `append_json` wrote, oldest first; none of an absent file. Cut lines are left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            logger.warning("%s: a line that is no JSON is left out (%d characters)", path, len(text))
    return lines


def sync_folder(folder: Path) -> None:
    """Synchronize the entries of a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
