"""Crashes at samples are recorded in files that other processes write and remove at the same time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longvita.data.index.header_probe import CrashRecord, count_crashes


def crash(part, line):
    """Start a part, and end as a process that crashes at a line does."""
    CrashRecord(part)._write(line)


def test_crashes_are_counted_by_line(tmp_path):
    part = tmp_path / "0-9.npz"
    for number, line in enumerate((7, 7, 3), start=1):
        crash(part, line)
        assert count_crashes(tmp_path) == number
    assert CrashRecord(part).lines == {7}


@pytest.mark.parametrize("content", [b"", b"[[7, ", b"7", b"\0" * 4, b"\xff"])
def test_records_that_another_process_is_writing(tmp_path, content):
    crash(tmp_path / "0-9.npz", 7)
    for name in ("9-20.crashes", "9-20.line"):
        (tmp_path / name).write_bytes(content)
    assert count_crashes(tmp_path) == 1
    assert CrashRecord(tmp_path / "9-20.npz").lines == set()


def test_records_that_another_process_removes(tmp_path, monkeypatch):
    for _ in range(2):
        crash(tmp_path / "0-9.npz", 7)
    names = os.listdir(tmp_path)
    for name in names:
        (tmp_path / name).unlink()
    monkeypatch.setattr(os, "listdir", lambda _: names)
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: (folder / n for n in names if n.endswith(pattern[1:])))
    assert count_crashes(tmp_path) == 0


def test_without_a_folder(tmp_path):
    assert count_crashes(tmp_path / "none") == 0
