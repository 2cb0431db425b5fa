"""Facts of media files are kept by file, size and time, and a known file is not opened."""

from __future__ import annotations

import math
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time

import pytest
from PIL import Image

from longvita.data.errors import MediaError, Reason
from longvita.data.media import facts_store
from longvita.data.media.facts_store import FactsStore, segment_names
from longvita.data.media.item import PictureFacts, probe_media
from longvita.data.media.media_file import FilePart, InlineMedia
from longvita.data.media.pictures.picture_file import probe_picture
from longvita.data.media.video import VideoFacts

OLD = 1_000_000_000
"""A time, in seconds, at which a file of a test was written."""


@pytest.fixture
def media(own_media):
    """Media files that were written long ago."""
    folder = own_media()
    for path in folder.rglob("*"):
        os.utime(path, (OLD, OLD))
    return folder


def probe(store_folder, pictures, videos=(), folder_fps=None, **options):
    """The facts by a store that is opened for them, as for a part of a data file."""
    with FactsStore(store_folder, **options) as known:
        return probe_media(pictures, videos, None, folder_fps, known=known)


def stored_facts(folder):
    return [row for name in segment_names(folder) for row in rows_of(folder / name)]


def rows_of(segment):
    with sqlite3.connect(segment) as table:
        return table.execute("SELECT * FROM facts").fetchall()


class TestKnownFiles:
    def test_are_not_opened_again(self, media, tmp_path, opened):
        files = [media / "one.png", media / "wide.jpg"], [media / "clip.mp4", media / "frames"]
        facts = probe(tmp_path / "facts", *files)
        assert len(opened) == 4 and facts == probe_media(*files, None)
        opened.clear()
        assert probe(tmp_path / "facts", *files) == facts
        assert opened == []

    def test_a_folder_of_frames_has_the_rate_of_each_source(self, media, tmp_path, opened):
        rates = [probe(tmp_path / "facts", [], [media / "frames"], rate).videos[0].fps for rate in (None, 3.0, 0.5)]
        assert rates == [1.0, 3.0, 0.5]
        assert len(opened) == 1

    def test_by_another_name_of_their_folder(self, media, tmp_path, opened, monkeypatch):
        (tmp_path / "link").symlink_to(media)
        monkeypatch.chdir(media)
        probe(tmp_path / "facts", [media / "one.png"])
        for name in (tmp_path / "link" / "one.png", "one.png", FilePart(str(media / "one.png"))):
            probe(tmp_path / "facts", [name])
        assert len(opened) == 1

    def test_members_of_an_archive(self, media, tmp_path, opened):
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name in ("one.png", "wide.jpg"):
                archive.add(media / name, name)
        os.utime(tmp_path / "a.tar", (OLD - 1, OLD - 1))
        with tarfile.open(tmp_path / "a.tar") as archive:
            places = [(member.offset_data, member.size, member.name) for member in archive]
        parts = [FilePart(str(tmp_path / "a.tar"), *place) for place in places]
        facts = probe(tmp_path / "facts", parts)
        assert facts.pictures == (PictureFacts(60, 60), PictureFacts(120, 40))
        opened.clear()
        assert probe(tmp_path / "facts", parts[::-1]).pictures == facts.pictures[::-1]
        assert opened == []
        os.utime(tmp_path / "a.tar", (OLD, OLD))
        probe(tmp_path / "facts", parts)
        assert len(opened) == 2

    def test_one_file_as_a_picture_and_as_a_video(self, tmp_path):
        frames = [Image.new("L", (60, 40), colour) for colour in (0, 255)]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=500)
        for _ in range(2):
            facts = probe(tmp_path / "facts", [tmp_path / "a.gif"], [tmp_path / "a.gif"])
            assert facts.pictures == (PictureFacts(60, 40),)
            assert facts.videos == (VideoFacts(2, 2.0),)


class TestFilesAreReadAgain:
    def test_that_changed(self, media, tmp_path, opened):
        first = probe(tmp_path / "facts", [media / "one.png"])
        for size, written in (((30, 10), OLD), ((20, 20), OLD + 1)):
            Image.new("RGB", size).save(media / "one.png")
            os.utime(media / "one.png", (written, written))
            facts = probe(tmp_path / "facts", [media / "one.png"])
            assert facts.pictures == (PictureFacts(*size),) != first.pictures
        assert len(opened) == 3

    def test_of_which_only_the_time_changed(self, media, tmp_path, opened):
        probe(tmp_path / "facts", [media / "one.png"])
        os.utime(media / "one.png", (OLD + 1, OLD + 1))
        probe(tmp_path / "facts", [media / "one.png"])
        assert len(opened) == 2

    def test_a_folder_of_frames_with_another_frame(self, media, tmp_path):
        assert probe(tmp_path / "facts", [], [media / "frames"]).videos[0].num_frames == 11
        shutil.copy(media / "one.png", media / "frames" / "frame12.png")
        assert probe(tmp_path / "facts", [], [media / "frames"]).videos[0].num_frames == 12

    def test_a_folder_that_is_being_written(self, tmp_path):
        """The next frame may be added without a change of the folder's time."""
        (tmp_path / "film").mkdir()
        for number in range(3):
            times = os.stat(tmp_path / "film")
            Image.new("RGB", (8, 8)).save(tmp_path / "film" / f"{number}.png")
            if number:
                os.utime(tmp_path / "film", ns=(times.st_atime_ns, times.st_mtime_ns))
            assert probe(tmp_path / "facts", [], [tmp_path / "film"]).videos[0].num_frames == number + 1

    @pytest.mark.parametrize("age", [0, 1.0, -3600])
    def test_that_may_still_be_written(self, media, tmp_path, age):
        """A file system may give two changes of one second the same time."""
        written = time.time() - age
        for size in ((30, 20), (20, 30)):
            (tmp_path / "a.ppm").write_bytes(b"P6 %d %d 255\n" % size + bytes(1800))
            os.utime(tmp_path / "a.ppm", (written, written))
            assert probe(tmp_path / "facts", [tmp_path / "a.ppm"]).pictures == (PictureFacts(*size),)

    def test_that_became_old_while_it_was_read(self, media, tmp_path, monkeypatch):
        os.utime(media / "one.png")
        times = iter([time.time_ns(), time.time_ns() + 3600 * 10**9])
        with FactsStore(tmp_path / "facts") as known:
            monkeypatch.setattr(facts_store.time, "time_ns", lambda: next(times))
            known.of("picture", media / "one.png", probe_picture)
            assert known._new == {}
            monkeypatch.undo()

    def test_whose_rate_is_no_number(self, media, tmp_path):
        for rate in (math.nan, 2.0):
            with FactsStore(tmp_path / "facts") as known:
                facts = known.of("video", media / "clip.mp4", lambda _, rate=rate: (10, rate))
                assert facts == pytest.approx((10, rate), nan_ok=True)

    def test_that_are_broken_or_missing(self, media, tmp_path):
        for _ in range(2):
            for name, reason in (("text.png", Reason.BROKEN_PICTURE), ("late.png", Reason.MISSING_FILE)):
                with pytest.raises(MediaError) as caught:
                    probe(tmp_path / "facts", [media / name])
                assert caught.value.reason == reason
        shutil.copy(media / "one.png", media / "late.png")
        assert probe(tmp_path / "facts", [media / "late.png"]).pictures == (PictureFacts(60, 60),)

    def test_where_it_is_asked_for(self, media, tmp_path, opened):
        """A file may be replaced by another one of its size and time, as from an archive."""
        probe(tmp_path / "facts", [media / "one.png"])
        content = (media / "one.png").read_bytes()
        Image.new("RGB", (30, 20)).save(media / "one.png")
        (media / "one.png").write_bytes((media / "one.png").read_bytes().ljust(len(content), b"\0")[: len(content)])
        os.utime(media / "one.png", (OLD, OLD))
        assert probe(tmp_path / "facts", [media / "one.png"]).pictures == (PictureFacts(60, 60),)
        assert probe(tmp_path / "facts", [media / "one.png"], is_renewed=True).pictures == (PictureFacts(30, 20),)
        assert probe(tmp_path / "facts", [media / "one.png"]).pictures == (PictureFacts(30, 20),)
        assert len(opened) == 2

    @pytest.mark.parametrize("damage", [lambda content: content[:4096], lambda content: b"", lambda content: b"x" * 99])
    def test_after_a_damage(self, media, tmp_path, opened, damage):
        probe(tmp_path / "facts", [media / "one.png"])
        (name,) = segment_names(tmp_path / "facts")
        segment = tmp_path / "facts" / name
        segment.write_bytes(damage(segment.read_bytes()))
        for _ in range(2):
            assert probe(tmp_path / "facts", [media / "one.png"]).pictures == (PictureFacts(60, 60),)
        assert len(opened) == 2
        assert not segment.exists()

    def test_of_inline_bytes_nothing_is_stored(self, media, tmp_path):
        probe(tmp_path / "facts", [InlineMedia((media / "one.png").read_bytes(), "one.png")])
        assert stored_facts(tmp_path / "facts") == []

    def test_where_nothing_can_be_stored(self, media, tmp_path, caplog):
        (tmp_path / "facts").write_text("no folder")
        assert probe(tmp_path / "facts", [media / "one.png"]).pictures == (PictureFacts(60, 60),)
        assert "facts of media files cannot be stored" in caplog.text


def add(store, numbers, facts=lambda number: (number, number)):
    """Facts of made files."""
    for number in numbers:
        store._new[number.to_bytes(12, "big")] = facts(number)
    store.save()


class TestSegments:
    def test_are_merged_and_keep_every_fact(self, tmp_path):
        numbers = list(range(3000))
        random.Random(0).shuffle(numbers)
        for start in range(0, len(numbers), 30):
            with FactsStore(tmp_path) as store:
                add(store, numbers[start : start + 30])
        names = segment_names(tmp_path)
        assert [name.split("-")[0] for name in names] == sorted(name.split("-")[0] for name in names)
        assert len(names) < 2 * facts_store.MERGED
        assert sorted(int.from_bytes(row[0], "big") for row in stored_facts(tmp_path)) == sorted(numbers)
        with FactsStore(tmp_path) as store:
            assert all(store._find(number.to_bytes(12, "big")) == (number, number) for number in numbers)

    def test_the_newest_fact_is_found(self, tmp_path):
        for value in range(20):
            with FactsStore(tmp_path) as store:
                add(store, [7, 100 + value], lambda _, value=value: (value, value))
                assert store._find((7).to_bytes(12, "big")) == (value, value)
            with FactsStore(tmp_path) as store:
                assert store._find((7).to_bytes(12, "big")) == (value, value)

    def test_take_few_bytes(self, tmp_path):
        generator = random.Random(0)
        keys = sorted(generator.randbytes(12) for _ in range(50_000))
        facts_store.write_segment(tmp_path, 0, 1, ((key, *generator.choices(range(100, 4000), k=2)) for key in keys))
        (name,) = segment_names(tmp_path)
        assert (tmp_path / name).stat().st_size / 50_000 < 28

    def test_of_processes_that_write_at_once(self, tmp_path):
        code = (
            "import sys; from pathlib import Path; from longvita.data.media.facts_store import FactsStore\n"
            "for turn in range(20):\n"
            "    with FactsStore(Path(sys.argv[1])) as store:\n"
            "        for number in range(10):\n"
            "            key = (int(sys.argv[2]) * 1000 + turn * 10 + number).to_bytes(12, 'big')\n"
            "            store._new[key] = 1, 2.5\n"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        writers = [subprocess.Popen([*command, str(number)], stderr=subprocess.PIPE) for number in range(3)]
        assert [writer.communicate(timeout=120)[1] for writer in writers] == [b""] * 3
        assert len({row[0] for row in stored_facts(tmp_path)}) == 600

    def test_that_another_process_removes_are_only_lost(self, tmp_path):
        with FactsStore(tmp_path) as store:
            add(store, [1])
            for name in segment_names(tmp_path):
                (tmp_path / name).unlink()
            store._find((2).to_bytes(12, "big"))
            add(store, [3])
            assert store._find((3).to_bytes(12, "big")) == (3, 3)

    def test_where_the_file_system_has_no_locks(self, tmp_path, monkeypatch):
        def refuse(*_arguments):
            raise OSError("no locks")

        monkeypatch.setattr(facts_store.fcntl, "flock", refuse)
        for number in range(20):
            with FactsStore(tmp_path) as store:
                add(store, [number])
        assert len(segment_names(tmp_path)) < facts_store.MERGED + 2
        assert len(stored_facts(tmp_path)) == 20

    def test_drafts_of_ended_processes_are_removed(self, tmp_path):
        for name, age in ((".0-1-a.facts1.draft", OLD), (".0-2-b.facts1.draft", None)):
            (tmp_path / name).write_text("")
            if age:
                os.utime(tmp_path / name, (age, age))
        with FactsStore(tmp_path) as store:
            add(store, [1])
        assert [path.name for path in tmp_path.glob(".*.draft")] == [".0-2-b.facts1.draft"]


def test_a_picture_at_a_store_is_asked_for_by_one_request(media, tmp_path, memory):
    memory.pipe("/media/one.png", (media / "one.png").read_bytes())
    source = FilePart("memory://media/one.png")
    with FactsStore(tmp_path / "facts") as known:
        assert known.of("picture", source, probe_picture) == (60, 60)
    with FactsStore(tmp_path / "facts") as known:
        assert known.of("picture", source, lambda _: pytest.fail("opened")) == (60, 60)
    memory.pipe("/media/one.png", (media / "wide.jpg").read_bytes())
    with FactsStore(tmp_path / "facts") as known:
        assert known.of("picture", source, probe_picture) == (120, 40)
