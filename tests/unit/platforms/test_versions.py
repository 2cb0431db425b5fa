"""Versions and commits of installed libraries."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longvita.platforms.base import importable
from longvita.platforms.cpu.platform import CPUPlatform
from longvita.platforms.cuda.platform import CUDAPlatform
from longvita.platforms.npu.platform import NPUPlatform
from longvita.platforms.versions import checked_out_commit, library_version, source_commit

NAME = "library_of_this_test"
COMMIT = "3df491c3" * 5


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Look for modules and their versions again."""
    for cached in (importable, library_version):
        cached.cache_clear()
    yield
    for cached in (importable, library_version):
        cached.cache_clear()
    sys.modules.pop(NAME, None)


def library(root: Path, version: str = "0.16.0") -> Path:
    """A package with its metadata next to it, on the path by monkeypatch.syspath_prepend."""
    (root / NAME).mkdir(parents=True)
    (root / NAME / "__init__.py").touch()
    info = root / f"{NAME}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {version}\n")
    return info


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path) -> str:
    """Make the folder a repository with one commit; its hash."""
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    return git(folder, "rev-parse", "HEAD")


def test_a_checkout_has_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path)
    (tmp_path / "setup.py").touch()
    commit = repository(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert source_commit(NAME, NAME) == commit
    assert library_version(NAME, NAME) == f"0.16.0 (commit {commit[:8]})"


def test_a_later_commit_is_not_that_of_the_running_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path)
    (tmp_path / "setup.py").touch()
    commit = repository(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = library_version(NAME, NAME)
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "second")
    assert source_commit(NAME, NAME) != commit
    assert library_version(NAME, NAME) == before == f"0.16.0 (commit {commit[:8]})"


def test_a_copy_inside_another_checkout_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "inner"
    library(inner)
    (inner / "setup.py").touch()
    (tmp_path / "setup.py").touch()
    repository(tmp_path)
    monkeypatch.syspath_prepend(inner)
    assert library_version(NAME, NAME) == "0.16.0"
    assert library_version(NAME, NAME, always_commit=True) == "0.16.0 (unknown commit)"


def test_an_installed_package_has_the_commit_that_pip_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the checkout around the environment."""
    (tmp_path / "setup.py").touch()
    info = library(tmp_path / "site-packages")
    repository(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    assert library_version(NAME, NAME) == "0.16.0"
    vcs = {"url": "https://example.org/library.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}
    (info / "direct_url.json").write_text(json.dumps(vcs))
    library_version.cache_clear()
    assert library_version(NAME, NAME) == "0.16.0 (commit 3df491c3)"


def test_branches_worktrees_and_packed_names(tmp_path: Path) -> None:
    main, other = tmp_path / "main", tmp_path / "other"
    library(main)
    commit = repository(main)
    assert checked_out_commit(main / ".git") == commit
    git(main, "worktree", "add", "--quiet", "-b", "branch", str(other))
    assert (other / ".git").is_file()
    assert checked_out_commit(other / ".git") == commit
    git(main, "pack-refs", "--all")
    assert checked_out_commit(main / ".git") == commit == checked_out_commit(other / ".git")
    git(main, "checkout", "--quiet", "--detach")
    assert checked_out_commit(main / ".git") == commit
    assert checked_out_commit(tmp_path / "absent") is None


def test_each_platform_names_what_decides_the_order() -> None:
    versions = CPUPlatform().layer_versions()
    assert versions["megatron-core"] == importlib.metadata.version("megatron-core")
    assert versions["torch"] == importlib.metadata.version("torch")
    assert set(versions) == {"longvita", "megatron-core", "torch"}
    assert set(CUDAPlatform().layer_versions()) == {*versions, "transformer-engine"}
    assert set(NPUPlatform().layer_versions()) == {*versions, "mindspeed"}
    assert library_version("no-such-library", "no_such_library") == "not installed"
