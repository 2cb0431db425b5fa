"""The quickstart, run once for all tests that look at what it made."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

QUICKSTART = "bash scripts/quickstart.sh"
QUICKSTART_LIMIT = 2400
"""Seconds after which the quickstart counts as hanging."""


def run_command(command: str, timeout: float, stdin: str = "") -> subprocess.CompletedProcess:
    """Run a command line as a person would: in the repository's root, with the environment's programs first on PATH."""
    environment = {**os.environ, "PATH": f"{REPOSITORY / '.venv' / 'bin'}:{os.environ['PATH']}"}
    # A person's shell sets none of these; tests/distributed may.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    return subprocess.run(
        ["bash", "-c", command],
        cwd=REPOSITORY,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def quickstart() -> Path:
    """The folder that `bash scripts/quickstart.sh` filled, run once for the whole session."""
    folder = REPOSITORY / "runs" / "quickstart"
    started = time.time()
    result = run_command(QUICKSTART, QUICKSTART_LIMIT)
    assert result.returncode == 0, f"{result.stdout[-8000:]}\n{result.stderr[-8000:]}"
    report = folder / "report.json"
    assert report.is_file(), f"no {report}\n{result.stdout[-8000:]}"
    assert report.stat().st_mtime >= started, "the report is an older run's"
    return folder
