"""System programs that a test runs: looked for at its start, so that no test ends half-way in a traceback."""

from __future__ import annotations

import pytest

from longvita.doctor.components import missing_programs


def need_programs(*names: str) -> None:
    """Skip the test, with the command that installs the programs, if one is missing."""
    if message := missing_programs(names):
        pytest.skip(message)
