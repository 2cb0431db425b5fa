"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says something of the machine alone.
settings.register_profile("without a clock", deadline=None)
settings.load_profile("without a clock")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden vectors."""
    return REPOSITORY / "tests" / "golden"


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes YAML text to a file of the test's folder and returns its path."""

    def write(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


_left_out: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option of `scripts/test.sh --full`."""
    parser.addoption("--full", action="store_true", help="run the tests that take minutes too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of another project's source where it is not at hand, and long ones unless asked for."""
    markers = [] if os.environ.get("MINDSPEED_SOURCE") else ["mindspeed"]
    markers += [] if config.option.full else ["long"]
    without = [item for item in items if any(map(item.get_closest_marker, markers))]
    if without:
        config.hook.pytest_deselected(items=without)
        items[:] = [item for item in items if item not in without]


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remember what a marker expression left out."""
    _left_out.extend(item.nodeid for item in items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List by name the tests that markers leave out; pytest itself only counts them."""
    if _left_out and not terminalreporter.config.option.keyword:
        terminalreporter.section(
            "deselected (tests that need an accelerator or a source that is not here, or take minutes, are by default)"
        )
        for name in sorted(_left_out):
            terminalreporter.write_line(name)
