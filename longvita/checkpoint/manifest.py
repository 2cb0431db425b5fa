"""Which checkpoint folders are whole: a list of checksums that is written last.

A folder `step_00000100` holds a `manifest.json` with size and SHA-256 of every other file in it. A folder without one
was never finished; one whose files do not match it was cut or changed afterwards.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from longvita.checkpoint.errors import CheckpointError
from longvita.files import write_atomically

MANIFEST = "manifest.json"
_STEP = re.compile(r"step_(\d{8,})")
_CHUNK = 1 << 22

Digest = tuple[int, str]
"""Size in bytes and SHA-256 in hexadecimal."""


def step_folder(root: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps."""
    return root / f"step_{step:08d}"


def step_of(folder: Path) -> int | None:
    """Number of steps in a checkpoint folder's name; None for another folder."""
    match = _STEP.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def step_folders(root: Path) -> list[Path]:
    """Checkpoint folders in `root`, whole or not, newest first."""
    if not root.is_dir():
        return []
    found = [(step, folder) for folder in root.iterdir() if folder.is_dir() and (step := step_of(folder)) is not None]
    return [folder for _, folder in sorted(found, reverse=True)]


def checkpoint_root(output: Path) -> Path:
    """Where a run with this output folder keeps its checkpoints."""
    return output / "checkpoints"


def numbered_root(folder: Path) -> Path | None:
    """The folder of numbered checkpoints that `folder` is, or has as a run's output folder; None for others."""
    return next((root for root in (folder, checkpoint_root(folder)) if step_folders(root)), None)


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is a checkpoint of ours, holds numbered ones, or is the output folder of a run that has some."""
    return (folder / MANIFEST).is_file() or numbered_root(folder) is not None


def digest(path: Path) -> Digest:
    """Size and checksum of a file."""
    checksum, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum.update(chunk)
            size += len(chunk)
    return size, checksum.hexdigest()


def write_manifest(folder: Path, known: dict[str, Digest]) -> None:
    """List every file of the folder; digests in `known` are taken as they are. The file appears whole or not at all."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            size, checksum = known.get(name) or digest(path)
            files[name] = {"bytes": size, "sha256": checksum}
    write_atomically(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")


def read_manifest(folder: Path) -> dict[str, Digest]:
    """Size and checksum of each file, by name. Raises CheckpointError when there is no list or it cannot be read."""
    path = folder / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        return {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was never finished") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r})") from error


def find_damage(folder: Path, share: tuple[int, int] = (0, 1)) -> list[str]:
    """What is wrong with a folder, a sentence per file; empty for a whole one.

    Files are shared out: `share` (index, count) checks every count-th file from the index-th on.
    """
    try:
        files = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    index, count = share
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


def newest_intact(
    root: Path,
    warn: Callable[[str], None],
    check: Callable[[Path], list[str]] = find_damage,
) -> Path | None:
    """The newest checkpoint without damage, None when there is none. Each refused one is reported through `warn`."""
    for folder in step_folders(root):
        damage = check(folder)
        if not damage:
            return folder
        warn(f"checkpoint {folder.name} is refused: {'; '.join(damage)}")
    return None


def folders_to_remove(folders: Iterable[Path], newest: int, keep: int) -> list[Path]:
    """Checkpoints that may go once step `newest` is written: all but the `keep` newest up to it.

    Folders of later steps were refused when the run resumed; they stay until the run gets there and replaces them.
    """
    done = [folder for folder in folders if (step_of(folder) or 0) <= newest]
    return sorted(done, key=lambda folder: step_of(folder) or 0, reverse=True)[keep:]
