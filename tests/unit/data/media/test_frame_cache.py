from __future__ import annotations

import dataclasses
import errno
import fcntl
import logging
import os
import subprocess
import sys

import numpy as np
import pytest

from longvita.data.media import frame_cache, item
from longvita.data.media.frame_cache import COUNT_FILE, HEADER, FrameCache
from longvita.data.media.item import MediaSettings, VideoItem, decode_tiles
from longvita.data.media.media_file import FileIdentity
from longvita.data.media.video import probe_video
from tests.unit.data.material import write_video

SIZE = 16
ENTRY = HEADER.size + SIZE * SIZE * 3


@pytest.fixture
def film(tmp_path):
    return write_video(tmp_path / "film.mp4", count=20)


def settings(tmp_path, entries=100, **changes):
    return MediaSettings(
        image_size=SIZE,
        max_fps=10.0,
        frame_cache=str(tmp_path / "cache"),
        frame_cache_bytes=entries * ENTRY,
        **changes,
    )


def tiles(film, settings, wanted=range(20)):
    return decode_tiles([VideoItem(film, probe_video(film))], settings, 64, wanted)


def entries(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != COUNT_FILE]


@pytest.fixture
def decoded(monkeypatch):
    """The frames that are decoded."""
    numbers = []
    read = item.read_frames

    def count(path, indices, *arguments):
        numbers.extend(indices)
        return read(path, indices, *arguments)

    monkeypatch.setattr(item, "read_frames", count)
    return numbers


def test_off_by_default(tmp_path, film):
    tiles(film, dataclasses.replace(settings(tmp_path), frame_cache=None))
    assert MediaSettings().frame_cache is None
    assert not (tmp_path / "cache").exists()


def test_a_frame_is_decoded_once(tmp_path, film, decoded):
    expected = tiles(film, MediaSettings(image_size=SIZE, max_fps=10.0))
    decoded.clear()
    for wanted in ([3, 5, 8], [1, 3, 5, 7], range(20)):
        np.testing.assert_array_equal(tiles(film, settings(tmp_path), wanted), expected[list(wanted)])
    assert sorted(decoded) == list(range(20))
    assert decoded[:5] == [3, 5, 8, 1, 7]


def test_a_damaged_count_costs_nothing(tmp_path, film):
    given = settings(tmp_path)
    expected = tiles(film, given)
    (tmp_path / "cache" / COUNT_FILE).write_bytes(b"\xff\xfe12")
    for entry in entries(tmp_path)[:5]:
        entry.unlink()
    np.testing.assert_array_equal(tiles(film, given), expected)


def test_another_file_or_tile_size_is_another_entry(tmp_path, film, decoded):
    tiles(film, settings(tmp_path), [4])
    tiles(film, dataclasses.replace(settings(tmp_path), image_size=8), [4])
    assert decoded == [4, 4]
    status = film.stat()
    os.utime(film, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    tiles(film, settings(tmp_path), [4])
    assert decoded == [4, 4, 4]


class TestBound:
    @staticmethod
    def frames(tmp_path, film, entries):
        return FrameCache(tmp_path / "cache", entries * ENTRY, FileIdentity.of(film), SIZE)

    def test_the_limit_holds_and_the_least_recently_used_are_evicted(self, tmp_path, film):
        frames = self.frames(tmp_path, film, 10)
        tile, out = np.ones((SIZE, SIZE, 3), np.uint8), np.zeros((1, SIZE, SIZE, 3), np.uint8)
        for number in range(10):
            frames.store(number, tile * number)
        assert frames.load([0], out) == []  # Used: 1 and 2 are the oldest now.
        frames.store(10, tile)
        there = [number for number in range(11) if frames.load([number], out) == []]
        assert there == [0, 3, 4, 5, 6, 7, 8, 9, 10]

    def test_the_limit_holds_at_every_moment(self, tmp_path, film):
        frames = self.frames(tmp_path, film, 7)
        for number in range(30):
            frames.store(number, np.zeros((SIZE, SIZE, 3), np.uint8))
            assert 1 <= len(entries(tmp_path)) <= 7
        assert int((tmp_path / "cache" / COUNT_FILE).read_text()) == ENTRY * len(entries(tmp_path))

    def test_a_lost_or_damaged_count_is_rebuilt(self, tmp_path, film):
        frames = self.frames(tmp_path, film, 7)
        for number, content in enumerate(["", "many", "-5", None] * 4):
            if content is None:
                (tmp_path / "cache" / COUNT_FILE).unlink()
            elif number:
                (tmp_path / "cache" / COUNT_FILE).write_text(content)
            frames.store(number, np.zeros((SIZE, SIZE, 3), np.uint8))
            assert 1 <= len(entries(tmp_path)) <= 7

    def test_unfinished_files_of_a_killed_process_are_counted_and_evicted(self, tmp_path, film):
        frames = self.frames(tmp_path, film, 10)
        frames.store(0, np.zeros((SIZE, SIZE, 3), np.uint8))
        left = tmp_path / "cache" / "00" / "tmpleft.part"
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(bytes(5 * ENTRY))
        os.utime(left, (0, 0))
        (tmp_path / "cache" / COUNT_FILE).unlink()
        for number in range(1, 6):
            frames.store(number, np.zeros((SIZE, SIZE, 3), np.uint8))
        assert not left.exists()
        assert len(entries(tmp_path)) == 6

    def test_other_files_are_neither_counted_nor_removed(self, tmp_path, film):
        own = [tmp_path / "cache" / "films" / "holiday.mp4", tmp_path / "cache" / "0a" / "notes.txt"]
        for file in own:
            file.parent.mkdir(parents=True)
            file.write_bytes(b"x" * 20 * ENTRY)
        tiles(film, settings(tmp_path, entries=5))
        assert all(file.exists() for file in own)
        assert 0 < len(entries(tmp_path)) - len(own) <= 5

    def test_a_cache_smaller_than_a_tile_stays_empty(self, tmp_path, film, decoded):
        tiles(film, dataclasses.replace(settings(tmp_path), frame_cache_bytes=ENTRY - 1), [1, 2])
        assert entries(tmp_path) == []
        assert decoded == [1, 2]


class TestTrouble:
    @pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "longer", "another kind"])
    def test_a_damaged_entry_is_decoded_again(self, tmp_path, film, decoded, damage):
        expected = tiles(film, settings(tmp_path), [4])
        (entry,) = entries(tmp_path)
        content = entry.read_bytes()
        flipped = content[:100] + bytes([content[100] ^ 1]) + content[101:]
        damaged = {
            "cut": content[:-1],
            "empty": b"",
            "flipped": flipped,
            "longer": content + b"x",
            "another kind": b"x" + content[1:],
        }
        entry.write_bytes(damaged[damage])
        for _ in range(2):
            np.testing.assert_array_equal(tiles(film, settings(tmp_path), [4]), expected)
        assert decoded == [4, 4]  # Rewritten by the first, used by the second.
        assert entry.read_bytes() == content

    def test_a_full_disk_stops_nothing(self, tmp_path, film, decoded, monkeypatch, caplog):
        def full(*arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(frame_cache.os, "replace", full)
        frame_cache._warn_once.cache_clear()
        with caplog.at_level(logging.WARNING):
            got = tiles(film, settings(tmp_path), [2, 4])
        np.testing.assert_array_equal(got, tiles(film, MediaSettings(image_size=SIZE, max_fps=10.0), [2, 4]))
        assert entries(tmp_path) == []  # No half-written file either.
        assert len(caplog.records) == 1
        assert "cannot be written to data.frame_cache" in caplog.text and "No space left on device" in caplog.text

    def test_a_folder_that_cannot_be_made_stops_nothing(self, tmp_path, film, caplog):
        (tmp_path / "cache").write_text("a file")
        expected = tiles(film, MediaSettings(image_size=SIZE, max_fps=10.0))
        frame_cache._warn_once.cache_clear()
        np.testing.assert_array_equal(tiles(film, settings(tmp_path)), expected)
        assert "cannot be written" in caplog.text

    def test_a_busy_lock_stops_nothing(self, tmp_path, film, decoded, monkeypatch):
        monkeypatch.setattr(frame_cache, "LOCK_WAIT", 0.0)
        tiles(film, settings(tmp_path), [1])
        with open(tmp_path / "cache" / COUNT_FILE) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            tiles(film, settings(tmp_path), [1, 2])
        assert decoded == [1, 2]
        assert len(entries(tmp_path)) == 1

    def test_folders_of_frames_are_not_cached(self, tmp_path, stock):
        tiles(stock / "media/frames", settings(tmp_path), [0])
        assert not (tmp_path / "cache").exists()


def test_several_processes_share_it(tmp_path, film):
    """All of them read and write the same frames, in a cache with space for some of them: each gets the right ones."""
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from tests.unit.data.media.test_frame_cache import settings, tiles\n"
        "from pathlib import Path\n"
        "folder, expected = Path(sys.argv[1]), np.load(sys.argv[2])\n"
        "for number in range(12):\n"
        "    wanted = sorted({(number * step) % 20 for step in (3, 5, 7, 11)})\n"
        "    got = tiles(folder / 'film.mp4', settings(folder, entries=9), wanted)\n"
        "    np.testing.assert_array_equal(got, expected[wanted])\n"
    )
    np.save(tmp_path / "expected.npy", tiles(film, MediaSettings(image_size=SIZE, max_fps=10.0)))
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "expected.npy")]
    processes = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) for _ in "abc"]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert 1 <= len(entries(tmp_path)) <= 9
