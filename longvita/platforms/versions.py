"""Versions of installed libraries, with the commit of those that run from a Git checkout."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
from pathlib import Path

from longvita.platforms.base import importable

COMMIT_DIGITS = 8
"""Hexadecimal digits of a commit, as printed."""
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_ROOT_FILES = ("pyproject.toml", "setup.py")


def distribution_version(distribution: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def library_version(distribution: str, module: str, always_commit: bool = False) -> str:
    """The version of a library as printed: "0.16.0", or "0.16.0 (commit 3df491c3)" from a Git checkout.

    It is read once in a process, as the code is: a checkout may change during a run, which keeps what it imported.

    always_commit: for a library whose version does not identify its code; without a commit it is "0.16.0 (unknown
    commit)".
    """
    if not importable(module):
        return "not installed"
    version = distribution_version(distribution) or "unknown version"
    commit = source_commit(distribution, module)
    if commit is not None:
        return f"{version} (commit {commit[:COMMIT_DIGITS]})"
    return f"{version} (unknown commit)" if always_commit else version


def source_commit(distribution: str, module: str) -> str | None:
    """The commit of the checkout that a module is imported from, or that pip installed it from; None if unknown.

    Changes that are not committed are not seen. A copy that pip made of a local checkout has no known commit: the
    checkout may have changed since.
    """
    spec = importlib.util.find_spec(module)
    folders = [*(spec.submodule_search_locations or ())] if spec else []
    folder = Path(folders[0]) if folders else None
    if folder is not None and not _INSTALLED & set(folder.parts):
        return _commit_of_checkout(folder)
    try:
        recorded = importlib.metadata.distribution(distribution).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    return json.loads(recorded).get("vcs_info", {}).get("commit_id") if recorded else None


def _commit_of_checkout(folder: Path) -> str | None:
    """The commit of the project that a package's folder belongs to.

    Its root is the nearest folder with a build file: a folder further up may be another project's checkout.
    """
    root = next((path for path in folder.parents if any((path / name).is_file() for name in _ROOT_FILES)), None)
    return checked_out_commit(root / ".git") if root is not None else None


def checked_out_commit(git: Path) -> str | None:
    """The commit that a `.git` folder has checked out, or the file of a worktree or submodule; None if unknown.

    It is read from the files: the program git may be missing, and it refuses folders of another user.
    """
    try:
        if git.is_file():
            git = git.parent / git.read_text().removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        branch = head.removeprefix("ref:").strip()
        shared = git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
        if (shared / branch).is_file():
            return (shared / branch).read_text().strip()
        packed = (line.split(" ", 1) for line in (shared / "packed-refs").read_text().splitlines())
        return next((commit for commit, *name in packed if name == [branch]), None)
    except (OSError, UnicodeDecodeError):
        return None
