"""System programs that tests and benchmarks run are looked for before anything else."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from longvita.doctor.components import INSTALL_PROGRAMS, missing_programs
from tests.conftest import REPOSITORY
from tests.programs import need_programs

PROGRAMS = ("ffmpeg", "ffprobe", "bible")
CHECKS = ("need_programs", "missing_programs", "MAKERS_OF_FILMS")


def test_programs_that_are_missing_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None if name in ("ffmpeg", "bible") else name)
    assert missing_programs(["srun"]) == ""
    assert missing_programs(["ffmpeg", "srun", "bible"]) == f"not installed: ffmpeg, bible; fix: {INSTALL_PROGRAMS}"
    with pytest.raises(pytest.skip.Exception, match="not installed: bible; fix: bash scripts/setup.sh --system"):
        need_programs("bible")


@pytest.mark.parametrize("part", [(), ("--part", "videos")], ids=["all", "videos"])
def test_the_benchmark_of_data_looks_for_its_program_first(tmp_path: Path, part: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "tools/benchmark/data.py", "--json", *part],
        cwd=REPOSITORY,
        env={"PATH": str(tmp_path), "PYTHONPATH": str(REPOSITORY), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == f"error: not installed: ffmpeg; fix: {INSTALL_PROGRAMS}"
    assert list(tmp_path.iterdir()) == []


def runs_program(path: Path) -> bool:
    """Whether a command line in the file begins with one of PROGRAMS."""
    lists = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.List))
    first = (node.elts[0] for node in lists if node.elts)
    return any(isinstance(one, ast.Constant) and one.value in PROGRAMS for one in first)


def test_every_file_that_runs_a_program_looks_for_it() -> None:
    folders = (REPOSITORY / "tests", REPOSITORY / "tools")
    running = [path for folder in folders for path in folder.rglob("*.py") if runs_program(path)]
    assert len(running) >= 4
    unchecked = [path for path in running if not any(name in path.read_text(encoding="utf-8") for name in CHECKS)]
    assert unchecked == [], f"call one of {CHECKS} first"
