from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvita.data.errors import MediaError
from longvita.data.media import packet_scan
from longvita.data.media.packet_scan import read_packet_table
from longvita.data.media.packets import KEY, SEEK_PACKETS, SHOWN, PacketTable, plan_sweeps
from longvita.data.media.pyav_reader import read_with_pyav
from tests.clips import clip
from tests.unit.data.material import clip_frames, write_video

PYRAMID = {"x264-params": "bframes=5:b-pyramid=normal:open-gop=1:keyint=14:min-keyint=14:scenecut=0"}
NO_LOG = {"x265-params": "log-level=none:keyint=14:min-keyint=14"}


def encode(path: Path, codec: str, options: dict[str, str], count: int = 60) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in clip_frames(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def header_first(source: Path, target: Path) -> Path:
    """The same packets in a file whose header comes first, so that a cut file still opens."""
    with av.open(str(source)) as given_, av.open(str(target), "w", options={"movflags": "faststart"}) as made:
        stream = made.add_stream_from_template(given_.streams.video[0])
        for packet in given_.demux(given_.streams.video[0]):
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    return target


def one_pass(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def table_of_file(path: Path) -> PacketTable:
    return read_packet_table(path, 60, lambda: None)


class Reading:
    """Pictures read of a file, and the number of frames that were decoded for them."""

    def __init__(self, path: Path, indices, threads: int = 1):
        self.decoded = 0
        pictures = read_with_pyav(path, table_of_file(path), indices, 60, self._count, threads)
        self.frames = [np.asarray(picture) for picture in pictures]

    def _count(self) -> None:
        self.decoded += 1


@pytest.fixture(scope="module")
def bikes() -> list[np.ndarray]:
    return one_pass(clip("bikes.mp4"))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "indices", [[0], [249], [74, 75, 76, 77], [3, 3, 140, 141, 240], range(0, 250, 25), range(250)]
)
def test_frames_are_those_of_one_pass(bikes, indices, threads):
    reading = Reading(clip("bikes.mp4"), indices, threads)
    np.testing.assert_array_equal(reading.frames, [bikes[index] for index in indices])


def test_only_what_is_needed_is_decoded():
    """The clip has key frames at 0, 30, 76, 137, 187 and 242, and nearly every second frame is needed by no other."""
    path = clip("bikes.mp4")
    assert Reading(path, [242]).decoded == 1
    assert Reading(path, [0, 242]).decoded == 2
    assert 1 < Reading(path, [100]).decoded < 25
    assert Reading(path, range(0, 250, 25)).decoded < 150
    assert Reading(path, range(250)).decoded == 250


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("pyramid.mp4", "libx264", PYRAMID),
        ("pyramid.mkv", "libx264", PYRAMID),
        ("hevc.mp4", "libx265", NO_LOG),
        ("mpeg4.mp4", "mpeg4", {"bf": "2", "g": "14"}),
        ("vp8.webm", "libvpx", {"g": "14"}),
    ],
)
def test_codecs_and_containers(tmp_path, name, codec, options):
    path = encode(tmp_path / name, codec, options)
    expected = one_pass(path)
    assert len(expected) == 60
    for indices in ([0, 17, 30, 59], [13, 14, 15, 41, 42, 43], range(60), *([index] for index in range(0, 60, 7))):
        np.testing.assert_array_equal(Reading(path, indices).frames, [expected[index] for index in indices])


@pytest.mark.parametrize("in_a_packet", [False, True])
def test_a_file_that_ends_early_gives_no_wrong_frame(tmp_path, bikes, in_a_packet):
    """Frames lost at the end may be shown before those just before the cut, whose numbers are therefore unknown."""
    whole = header_first(clip("bikes.mp4"), tmp_path / "whole.mp4")
    with av.open(str(whole)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    counts = set()
    for end in ends[60:70]:
        cut = tmp_path / f"{end}.mp4"
        cut.write_bytes(whole.read_bytes()[: end - 20 * in_a_packet])
        frames = []
        with pytest.raises(MediaError, match="cannot be read") as caught:
            for picture in read_with_pyav(cut, table_of_file(cut), range(100), 60):
                frames.append(np.asarray(picture))
        assert len(frames) > 30, caught.value
        np.testing.assert_array_equal(frames, bikes[: len(frames)])
        counts.add(len(frames))
    assert len(counts) > 3


def test_a_changed_file_is_read_again(tmp_path):
    path = write_video(tmp_path / "clip.mp4", count=20)
    assert table_of_file(path).num_frames == 20
    write_video(path, count=30)
    assert table_of_file(path).num_frames == 30
    assert len(Reading(path, [29]).frames) == 1


def test_few_tables_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(packet_scan, "TABLES_KEPT", 2)
    paths = [write_video(tmp_path / f"{number}.mp4", count=5) for number in range(3)]
    tables = [table_of_file(path) for path in paths]
    assert table_of_file(paths[2]) is tables[2]
    assert table_of_file(paths[0]) is not tables[0]


def table_of(groups: list[int]) -> PacketTable:
    """Groups of frames in decoding order, each beginning with a key frame."""
    count = sum(groups)
    bits = np.full(count, SHOWN, np.uint8)
    bits[np.cumsum([0, *groups[:-1]])] |= KEY
    return PacketTable(np.arange(count) * 40, bits, 0.001)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.data())
def test_sweeps_lead_to_every_frame_in_few_packets(groups, data):
    table = table_of(groups)
    frames = sorted(data.draw(st.lists(st.integers(0, table.num_frames - 1), min_size=1, max_size=20)))
    sweeps = plan_sweeps(table, frames)
    assert [frame for sweep in sweeps for frame in sweep.frames] == frames
    assert all(table.bits[sweep.start] & KEY and sweep.start <= sweep.frames[0] for sweep in sweeps)
    assert all(later.start - sooner.end > SEEK_PACKETS for sooner, later in itertools.pairwise(sweeps))
    starts = np.cumsum([0, *groups[:-1]])
    decoded = sum(sweep.end - sweep.start + 1 for sweep in sweeps)
    needed = {packet for frame in frames for packet in range(starts[starts <= frame].max(), frame + 1)}
    assert len(needed) <= decoded <= len(needed) + SEEK_PACKETS * len(frames)


def test_frames_shown_before_their_key_frame_are_decoded_from_the_one_before():
    stamps = np.asarray([0, 40, 80, 200, 120, 160, 240])
    bits = SHOWN | KEY * np.asarray([True, False, False, True, False, False, False])
    table = PacketTable(stamps, bits.astype(np.uint8), 0.001)
    assert [table.start_of(int(packet)) for packet in table.order] == [0, 0, 0, 0, 0, 3, 3]
