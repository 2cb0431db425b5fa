"""The shell scripts: their syntax, and the errors of set-up."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "scripts").rglob("*.s*"))


def bash(*arguments: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [shutil.which("bash") or "bash", *arguments],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def bare(tmp_path) -> Path:
    """A folder with the set-up script and what it reads, and no environment."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(REPOSITORY / "scripts/setup.sh", tmp_path / "scripts")
    for name in ("setup.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [*SCRIPTS, ".ci/run"])
def test_syntax(name):
    assert bash("-n", name).stderr == ""


def test_the_fast_tests_exist():
    text = (REPOSITORY / "scripts/test.sh").read_text(encoding="utf-8")
    paths = text.partition("FAST_TESTS=(")[2].partition(")")[0].split()
    assert len(paths) > 5 and [path for path in paths if not (REPOSITORY / path).exists()] == []
    assert "--fast" in bash("scripts/test.sh", "--help").stdout


def test_help_lists_the_options():
    result = bash("scripts/setup.sh", "--help")
    assert result.returncode == 0
    assert "--system" in result.stdout


def test_an_unknown_argument():
    result = bash("scripts/setup.sh", "--sistem")
    assert result.returncode == 1
    assert "unknown argument --sistem; known: --system" in result.stderr


@pytest.mark.parametrize("arguments", [(), ("nowhere",), ("docs",)], ids=["no source", "no folder", "another folder"])
def test_the_check_over_mindspeed_says_which_source_it_needs(arguments):
    result = bash("scripts/check_mindspeed.sh", *arguments)
    assert result.returncode == 2
    assert "core_r0.16.0" in result.stderr and "fix: " in result.stderr


def test_the_check_of_extras_knows_those_of_setup():
    result = bash("scripts/check_extras.sh", "gpuu")
    assert result.returncode == 2
    assert "unknown extra gpuu; known: core gpu " in result.stderr
    known = set(result.stderr.split("known: ")[1].split())
    assert known == {"core", *re.findall(r'^    "([a-z]+)": \[', (REPOSITORY / "setup.py").read_text(), re.MULTILINE)}


def test_the_check_of_extras_says_which_python_it_needs():
    result = bash("scripts/check_extras.sh", "core", PYTHON311="/nowhere/python3.11")
    assert result.returncode == 2
    assert "/nowhere/python3.11 is not a working Python 3.11; fix: PYTHON311=" in result.stderr


def test_an_unsupported_python(bare):
    old = bare / "old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    result = bash("scripts/setup.sh", cwd=bare, PYTHON=str(old))
    assert result.returncode == 1
    assert f"PYTHON={old} is not a working Python 3.11 or 3.12" in result.stderr
    assert not (bare / ".venv").exists()


def test_no_python_at_all(bare):
    programs = bare / "bin"
    programs.mkdir()
    for name in ("dirname", "cat", "cksum"):
        (programs / name).symlink_to(shutil.which(name))
    result = bash("scripts/setup.sh", cwd=bare, PATH=str(programs))
    assert result.returncode == 1
    assert "Python 3.11 or 3.12 is needed" in result.stderr
    assert "fix: install one" in result.stderr


def test_a_broken_environment_is_not_overwritten(bare):
    (bare / ".venv").mkdir()
    result = bash("scripts/setup.sh", cwd=bare)
    assert result.returncode == 1
    assert "remove .venv and run this again" in result.stderr
    assert list((bare / ".venv").iterdir()) == []


def test_debian_packages_are_skipped_without_apt(bare):
    (bare / ".venv").mkdir()
    programs = bare / "bin"
    programs.mkdir()
    for name in ("dirname", "cat", "cksum"):
        (programs / name).symlink_to(shutil.which(name))
    result = bash("scripts/setup.sh", "--system", cwd=bare, PATH=str(programs))
    assert "skipped Debian packages (ffmpeg bible-kjv slurm-wlm munge): no apt on this system" in result.stdout
