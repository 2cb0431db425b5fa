"""Names of files that are no data: hidden ones, and those that macOS and Windows add to folders and archives."""

from __future__ import annotations

ADDED_NAMES = frozenset(("__macosx", "thumbs.db", "desktop.ini"))
"""Names in lower case that do not begin with a dot, as `.DS_Store` and the `._NAME` files of AppleDouble do."""


def is_hidden(path: str) -> bool:
    """Return whether a path below a listed folder or archive is no data, by any of its parts.

    The path of that folder does not count: a data root may be hidden.
    """
    parts = (part for part in path.split("/") if part not in (".", ".."))
    return any(part.startswith(".") or part.lower() in ADDED_NAMES for part in parts)
