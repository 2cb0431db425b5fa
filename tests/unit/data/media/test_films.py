"""The picture at position k depends on the film and on k alone, and k counts the frames that a player shows."""

from __future__ import annotations

import random
from fractions import Fraction

import av
import av.logging
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from longvita.data.errors import MediaError
from longvita.data.media import packet_scan, pyav_reader
from longvita.data.media.h264_slices import is_disposable, size_of_length
from longvita.data.media.item import MediaSettings, VideoItem, decode_tiles
from longvita.data.media.packet_scan import read_packet_table
from longvita.data.media.packet_store import FIELDS, PacketStore, pack_table, unpack_table
from longvita.data.media.packets import PacketTable, video_stream
from longvita.data.media.pyav_reader import Damage
from longvita.data.media.video import (
    VideoFacts,
    count_frames,
    frame_times,
    probe_video,
    read_frames,
    selected_frames,
)
from longvita.inference.prompt_encoder import MediaTiles
from tests.unit.data.media.films import (
    CLOSED_GOP,
    FILMS,
    HEIGHT,
    NO_B_FRAMES,
    OPEN_GOP,
    WIDTH,
    X264,
    copied,
    h264,
    number_in,
    numbered,
    write_film,
)


def shown_by_a_player(path) -> list[np.ndarray]:
    """The frames of one pass through a film."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video_stream(container))]


def pictures(path, indices, **settings) -> list[np.ndarray]:
    return [np.asarray(picture) for picture in read_frames(path, indices, **settings)]


@pytest.fixture(params=list(FILMS), scope="module")
def film(request, tmp_path_factory):
    make, numbers = FILMS[request.param]
    return make(tmp_path_factory.mktemp("film")), numbers


def test_frames_are_those_that_a_player_shows(film):
    path, numbers = film
    expected = shown_by_a_player(path)
    assert probe_video(path).num_frames == len(expected) > 0
    np.testing.assert_array_equal(pictures(path, range(len(expected))), expected)
    if numbers:
        assert [number_in(picture) for picture in read_frames(path, range(len(expected)))] == numbers


def test_a_frame_is_the_same_whatever_else_is_read(film):
    path, _ = film
    expected = shown_by_a_player(path)
    for frame in range(0, len(expected), 3):
        np.testing.assert_array_equal(pictures(path, [frame]), expected[frame : frame + 1])
    for step, start, threads in ((7, 0, 1), (2, 1, 2), (13, 5, 1)):
        chosen = range(min(start, len(expected) - 1), len(expected), step)
        np.testing.assert_array_equal(pictures(path, chosen, threads=threads), [expected[frame] for frame in chosen])


def test_a_packed_table_is_small_and_the_same(film):
    path, _ = film
    table = read_packet_table(path, 60, lambda: None)
    packed = pack_table(table)
    copy = unpack_table(packed)
    for name in ("stamps", "bits", "order", "times"):
        np.testing.assert_array_equal(getattr(copy, name), getattr(table, name))
    assert (copy.num_frames, copy.is_seekable, copy.restarts) == (table.num_frames, table.is_seekable, table.restarts)


@pytest.mark.parametrize("seed", range(2, 6))
@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_a_damaged_frame_is_damaged_whatever_else_is_read(tmp_path, suffix, seed):
    path, chance = h264(tmp_path / f"film.{suffix}", OPEN_GOP), random.Random(seed)
    content = bytearray(path.read_bytes())
    end = content.index(b"moov") if suffix == "mp4" else len(content)  # The header stays intact.
    for _ in range(2):
        start = chance.randrange(end // 5, end - 200)
        content[start : start + 30] = chance.randbytes(30)
    path.write_bytes(content)
    packet_scan._tables.clear()
    count = probe_video(path).num_frames
    alone, replaced = [], {}
    for frame in range(count):
        damage = Damage(1.0)
        alone += pictures(path, [frame], damage=damage)
        replaced |= damage.replaced
    together = Damage(1.0)
    np.testing.assert_array_equal(pictures(path, range(count), damage=together), alone)
    assert together.replaced == replaced
    for frame, other in replaced.items():
        assert other not in replaced
        np.testing.assert_array_equal(alone[frame], alone[other])
    np.testing.assert_array_equal(pictures(path, range(1, count, 4), damage=Damage(1.0)), alone[1::4])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_lost_picture_is_found_whatever_else_is_read(tmp_path, suffix):
    """One that others depend on; a decoder that skips frames does not report it."""
    path = h264(tmp_path / f"film.{suffix}", CLOSED_GOP)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        length_bytes = size_of_length(container.streams.video[0].codec_context.extradata)
    content = path.read_bytes()
    disposable = [is_disposable(packet, length_bytes) for packet in packets]
    lost = next(number for number in range(24, 80) if not disposable[number] and disposable[number + 1])
    damaged = bytearray(content)
    damaged[content.index(packets[lost]) + length_bytes] = 0x1F  # A unit of an unknown type.
    path.write_bytes(damaged)
    packet_scan._tables.clear()
    alone = [pictures(path, [frame], damage=Damage(1.0))[0] for frame in range(80)]
    assert not np.array_equal(alone, shown_by_a_player(h264(tmp_path / f"whole.{suffix}", CLOSED_GOP)))
    for step in (1, 2, 3, 4, 5):
        chosen = range(step - 1, 80, step)
        np.testing.assert_array_equal(pictures(path, chosen, damage=Damage(1.0)), [alone[frame] for frame in chosen])


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_frames_that_no_other_depends_on(tmp_path, suffix):
    """Two of three between key frames: B-frames that are not referred to."""
    path = h264(tmp_path / f"film.{suffix}", CLOSED_GOP)
    with av.open(str(path)) as container:
        length_bytes = size_of_length(container.streams.video[0].codec_context.extradata)
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    assert (length_bytes > 0) == (suffix != "ts")
    disposable = [packet for packet in packets if is_disposable(packet, length_bytes)]
    assert 20 < len(disposable) < 60
    assert not is_disposable(packets[0], length_bytes)
    assert not is_disposable(b"", length_bytes)
    assert length_bytes == 0 or not is_disposable(disposable[0][:-1], length_bytes)


def test_complaints_of_a_decoder_are_heard_again():
    """Also if the last one was the same."""
    for _ in range(2):
        found: list = []
        with pyav_reader._complaints(found):
            av.logging.log(av.logging.ERROR, "h264", "no frame!")
        assert [text for _, _, text in found] == ["no frame!"]


class TestTimes:
    STAMPS = (*range(0, 2000, 50), *(2000 + 700 * number for number in range(40)))

    @pytest.fixture
    def uneven(self, tmp_path):
        return write_film(tmp_path / "film.mkv", *X264, CLOSED_GOP, stamps=self.STAMPS)

    def test_are_those_of_the_stamps(self, uneven):
        facts = probe_video(uneven)
        np.testing.assert_allclose(frame_times(uneven, facts), np.asarray(self.STAMPS) / 1000, atol=0.002)
        assert facts.fps == pytest.approx(79 / (self.STAMPS[-1] / 1000), rel=0.01)

    def test_of_a_cut_film_begin_at_its_first_frame(self, tmp_path):
        film = copied(h264(tmp_path / "whole.mp4"), tmp_path / "film.mp4", "-ss", "2.7")
        np.testing.assert_allclose(frame_times(film, probe_video(film)), np.arange(53) / 10, atol=1e-6)

    def test_of_joined_recordings_go_on(self, tmp_path):
        one = h264(tmp_path / "one.ts", count=40).read_bytes()
        (tmp_path / "two.ts").write_bytes(one + one)
        facts = probe_video(tmp_path / "two.ts")
        assert facts == VideoFacts(80, 10.0)
        np.testing.assert_allclose(frame_times(tmp_path / "two.ts", facts), np.arange(80) / 10, atol=1e-3)

    def test_a_false_rate_of_the_header_is_not_used(self, tmp_path):
        """Browsers write 1,000 frames a second."""
        film = tmp_path / "film.webm"
        with av.open(str(film), "w") as container:
            stream = container.add_stream("libvpx", rate=1000)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            for number in range(80):
                frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
                frame.pts, frame.time_base = number * 100, Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with av.open(str(film)) as container:
            assert container.streams.video[0].average_rate == 1000
        assert probe_video(film).fps == pytest.approx(10)

    @pytest.mark.parametrize("sampling", ["published", "even", "time"])
    def test_labels_are_those_of_the_frames(self, uneven, sampling):
        settings = MediaSettings(image_size=16, max_fps=1.0, frame_sampling=sampling)
        item = VideoItem(uneven, probe_video(uneven))
        frames = item.frames(settings, 64)
        assert len(frames) == count_frames(item.facts, 1.0, 64) == 30
        tiles = MediaTiles([item], settings)
        times = frame_times(uneven, item.facts)
        assert tiles.labels() == [f"film.mkv, frame {frame} at {times[frame]:.1f} s" for frame in frames]
        shown = [picture.resize((WIDTH, HEIGHT)) for picture in tiles.pictures(range(30))]
        assert len(shown) == 30

    def test_frames_by_time(self, uneven):
        settings = MediaSettings(max_fps=1.0, frame_sampling="time")
        frames = VideoItem(uneven, probe_video(uneven)).frames(settings, 64)
        seconds = np.asarray(self.STAMPS)[frames] / 1000
        assert (np.abs(seconds - np.arange(30)) <= 0.7).all()

    def test_even_frames_reach_the_end(self, tmp_path):
        assert selected_frames(VideoFacts(20, 1.0, True), 1.0, 8, "even") == [0, 2, 5, 8, 10, 13, 16, 19]
        assert selected_frames(VideoFacts(20, 1.0, True), 1.0, 8, "time") == [0, 2, 5, 7, 10, 12, 15, 17]
        assert selected_frames(VideoFacts(1000, 10.0), 1.0, 5, "even") == [0, 249, 499, 749, 999]
        assert selected_frames(VideoFacts(1, 10.0), 1.0, 5, "even") == [0]


class TestPacketStore:
    def test_a_stored_film_is_not_read_again(self, tmp_path, monkeypatch):
        film, store = h264(tmp_path / "film.ts"), PacketStore(tmp_path / "tables")
        facts, first = probe_video(film, store), pictures(film, [3, 50])
        packet_scan._tables.clear()
        monkeypatch.setattr(packet_scan, "scan_packets", None)
        assert probe_video(film, store) == facts
        np.testing.assert_array_equal(pictures(film, [3, 50], store=store), first)

    @pytest.mark.parametrize("damage", [lambda content: content[:-3], lambda content: b"", lambda content: b"x" * 99])
    def test_a_damaged_entry_is_made_again(self, tmp_path, damage):
        film, store = h264(tmp_path / "film.ts"), PacketStore(tmp_path / "tables")
        facts = probe_video(film, store)
        (entry,) = (path for path in store.folder.rglob("*") if path.is_file())
        content = entry.read_bytes()
        entry.write_bytes(damage(content))
        packet_scan._tables.clear()
        assert probe_video(film, store) == facts
        assert entry.read_bytes() == content

    @given(st.lists(st.integers(1, 200), min_size=1, max_size=300), st.integers(-(1 << 40), 1 << 40))
    def test_any_table_is_kept(self, steps, first):
        stamps = first + np.cumsum([0, *steps])
        table = PacketTable(stamps, np.full(len(stamps), 3, np.uint8), 0.001, (2,), True, 9, 7)
        copy = unpack_table(pack_table(table))
        np.testing.assert_array_equal(copy.stamps, stamps)
        assert [getattr(copy, name) for name in FIELDS] == [getattr(table, name) for name in FIELDS]

    def test_takes_two_bytes_a_frame_of_an_unsteady_camera(self):
        """An hour at 30 frames a second, each up to 4 milliseconds late, with B-frames."""
        chance = np.random.default_rng(0)
        shown = np.arange(108_000) * 33 + chance.integers(0, 5, 108_000)
        decoded = shown.reshape(-1, 4)[:, [0, 3, 1, 2]].ravel()
        table = PacketTable(decoded, np.where(np.arange(108_000) % 60, 2, 3).astype(np.uint8), 0.001)
        assert len(pack_table(table)) < 2 * 108_000


def test_a_folder_of_frames_has_the_rate_of_its_source(tmp_path):
    folder = tmp_path / "ShareGPTVideo" / "clip"
    folder.mkdir(parents=True)
    for number in range(10):
        Image.fromarray(numbered(number)).save(folder / f"{number}.png")
    (tmp_path / "other").symlink_to(folder)
    assert probe_video(folder).fps == 2
    assert probe_video(tmp_path / "other").fps == 1
    assert probe_video(tmp_path / "other", folder_fps=5.0).fps == 5
    assert selected_frames(probe_video(folder), 1.0, 64) == [0, 2, 4, 6, 8]


class TestShareOfDamage:
    @pytest.fixture
    def cut(self, tmp_path):
        """A film whose header promises 80 frames, of which the last ones are lost."""
        film = write_film(tmp_path / "film.mp4", "-movflags", "faststart", *X264, NO_B_FRAMES)
        film.write_bytes(film.read_bytes()[:-400])
        return film

    def test_a_lost_end_costs_the_frames_concerned(self, cut):
        facts = probe_video(cut)
        assert facts.num_frames == 80
        damage = Damage(0.5)
        numbers = [number_in(picture) for picture in read_frames(cut, range(80), damage=damage)]
        last = min(damage.replaced) - 1
        assert 40 < last < 79
        assert numbers == [min(frame, last) for frame in range(80)]

    def test_a_frame_that_is_too_far_from_an_intact_one_is_an_error(self, cut):
        damage = Damage(0.5)
        list(read_frames(cut, range(80), damage=damage))
        last = min(damage.replaced) - 1
        assert len(list(read_frames(cut, [last + 2], damage=Damage(2 / 80)))) == 1
        with pytest.raises(MediaError, match=f"frame {last + 2} cannot be read"):
            list(read_frames(cut, [last + 2], damage=Damage(1 / 80)))
        with pytest.raises(MediaError, match=f"frame {last + 1} cannot be read"):
            list(read_frames(cut, [last + 1]))

    def test_replaced_frames_are_counted_and_not_cached(self, cut, tmp_path):
        counts = []
        settings = MediaSettings(
            image_size=16,
            max_fps=10.0,
            max_damaged_share=0.5,
            frame_cache=str(tmp_path / "c"),
            frame_cache_bytes=1 << 30,
        )
        item = VideoItem(cut, probe_video(cut))
        tiles = [decode_tiles([item], settings, 80, range(80), on_replaced=counts.append) for _ in range(2)]
        np.testing.assert_array_equal(*tiles)
        assert counts[0] == counts[1] > 0
