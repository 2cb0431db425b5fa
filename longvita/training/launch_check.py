"""Check a training run before any process starts: initial weights and folders that do not exist."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from longvita.config import Config, ConfigError
from longvita.config.errors import Problem
from longvita.data.document import index_folder

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_PAGES = ("models", "datasets", "spaces", "docs")
"""Names that no owner on the Hub can have: they are pages of huggingface.co."""


def check(config: Config, made_before: Sequence[str] = ()) -> None:
    """Raise ConfigError with every missing source of weights and every folder that cannot be made.

    made_before: output folders of earlier stages, which do not exist yet.
    """
    problems = []
    for field in ("initial", "initial_language", "initial_vision"):
        name = getattr(config.checkpoint, field)
        if name not in (None, *made_before) and not Path(name).is_dir() and not _is_hub_id(name):
            message = "is neither a folder here nor a Hub id (OWNER/NAME)"
            problems.append(Problem(message, f"checkpoint.{field}", name, fix="check the path"))
    data = config.data
    folders = {
        "output": config.output,
        "data.index_cache": str(index_folder(config)),
        "data.frame_cache": data.frame_cache,
    }
    for field, folder in folders.items():
        if folder is not None:
            problems += _folder_problems(field, folder)
    if problems:
        raise ConfigError(problems)


def _folder_problems(field: str, name: str) -> Iterator[Problem]:
    """The reason why a folder that a run writes to cannot be made, if there is one."""
    folder = Path(name).absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        message = f"cannot be made: {place} is {'not writable' if place.is_dir() else 'not a folder'}"
        yield Problem(message, field, name, fix="another folder")


def _is_hub_id(name: str) -> bool:
    """Whether a name that is no folder here can be OWNER/NAME.

    It cannot when its first part is a folder (a mistyped path) or one of the Hub's own pages, such as the models/ of
    the recipes.
    """
    owner = name.partition("/")[0]
    return _HUB_ID.fullmatch(name) is not None and owner not in _HUB_PAGES and not Path(owner).is_dir()
