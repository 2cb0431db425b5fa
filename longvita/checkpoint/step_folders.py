"""Names in a folder of checkpoints: one folder for each saved step, and the run's config in each."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from longvita.checkpoint.manifest import MANIFEST

CONFIG = "config.json"
"""The run's config inside a checkpoint; readable without this project."""
_STEP = re.compile(r"step_(\d{8,})")


def step_folder(root: Path, step: int) -> Path:
    """Folder of the checkpoint after `step` steps."""
    return root / f"step_{step:08d}"


def step_of(folder: Path) -> int | None:
    """Number of steps in a checkpoint folder's name; None for another folder."""
    match = _STEP.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def step_folders(root: Path) -> list[Path]:
    """Checkpoint folders in `root`, intact or not, newest first."""
    if not root.is_dir():
        return []
    found = [(step, folder) for folder in root.iterdir() if folder.is_dir() and (step := step_of(folder)) is not None]
    return [folder for _, folder in sorted(found, reverse=True)]


def checkpoint_root(output: Path) -> Path:
    """The folder of checkpoints in a run's output folder."""
    return output / "checkpoints"


def numbered_root(folder: Path) -> Path | None:
    """The folder with step folders: `folder` itself, or its `checkpoints`; None when neither has any."""
    return next((root for root in (folder, checkpoint_root(folder)) if step_folders(root)), None)


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` is a training checkpoint, holds numbered ones, or is the output folder of a run with some."""
    return (folder / MANIFEST).is_file() or numbered_root(folder) is not None


def folders_to_remove(folders: Iterable[Path], newest: int, keep: int) -> list[Path]:
    """Checkpoints to delete once step `newest` is written: all but the `keep` newest up to it.

    Folders of later steps were refused when the run resumed; they stay until the run gets there and replaces them.
    """
    done = [folder for folder in folders if (step_of(folder) or 0) <= newest]
    return sorted(done, key=lambda folder: step_of(folder) or 0, reverse=True)[keep:]
