"""Runs every command of the README except the test command itself."""

from __future__ import annotations

import shutil

import pytest

from tests.conftest import REPOSITORY
from tests.e2e.conftest import QUICKSTART, QUICKSTART_LIMIT, run_command
from tests.readme import TEST_COMMAND, readme_commands

COMMAND_LIMIT = 600
# Input of the interactive commands.
TYPED = {"longvita chat": "What can you do?\n/quit\n"}


@pytest.fixture(scope="module", autouse=True)
def no_leftovers(quickstart):
    """Remove runs/readme, which an earlier run of the README's commands may have left."""
    shutil.rmtree(REPOSITORY / "runs" / "readme", ignore_errors=True)


@pytest.mark.timeout(QUICKSTART_LIMIT + COMMAND_LIMIT)
@pytest.mark.parametrize("command", [c for c in readme_commands() if c not in (TEST_COMMAND, QUICKSTART)])
def test_command(command):
    stdin = next((text for start, text in TYPED.items() if command.startswith(start)), "")
    result = run_command(command, COMMAND_LIMIT, stdin)
    assert result.returncode == 0, f"{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    assert "Traceback" not in result.stderr
