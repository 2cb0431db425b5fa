"""manifest.json: size and SHA-256 of every other file of a checkpoint folder, written last.

A folder without a manifest was never finished; one whose files do not match it was cut or changed afterwards.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from longvita.checkpoint.errors import CheckpointError
from longvita.files import write_atomically

MANIFEST = "manifest.json"

Digest = tuple[int, str]
"""Size in bytes and SHA-256 in hexadecimal."""


def digest(path: Path) -> Digest:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), checksum


def write_manifest(folder: Path, known: dict[str, Digest]) -> None:
    """List every file of the folder, atomically. Files in `known` (by name) are not read again.

    Raises CheckpointError if one of those is not there.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            size, checksum = known.get(name) or digest(path)
            files[name] = {"bytes": size, "sha256": checksum}
    unseen = known.keys() - files.keys()
    if unseen:
        raise CheckpointError(
            f"{folder} has no {min(unseen)}, which another rank wrote; fix: a folder that all nodes share"
        )
    write_atomically(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Digest]:
    """Read size and checksum of each file, by name. Raises CheckpointError for a missing or unreadable manifest."""
    path = folder / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was never finished") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r})") from error


def find_damage(folder: Path, index: int = 0, count: int = 1) -> list[str]:
    """Check a folder against its manifest: one sentence for each damaged file, none for an intact folder.

    With `count` above 1 only every `count`-th file is checked, from the `index`-th on: the ranks divide the files.
    """
    try:
        files = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    checks = (_file_damage(folder / name, files[name]) for name in sorted(files)[index::count])
    return [damage for damage in checks if damage]


def _file_damage(path: Path, expected: Digest) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected[0]:
            return f"{path} has {size} bytes instead of {expected[0]}"
        if digest(path)[1] != expected[1]:
            return f"{path} does not match its checksum"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return None
