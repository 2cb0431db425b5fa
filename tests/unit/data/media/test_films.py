"""The picture at position k depends on the film and on k alone, and k counts the frames that a player shows."""

from __future__ import annotations

import random

import av
import numpy as np
import pytest

from longvita.data.media import packet_scan
from longvita.data.media.packet_scan import read_packet_table
from longvita.data.media.packet_store import pack_table, unpack_table
from longvita.data.media.packets import video_stream
from longvita.data.media.pyav_reader import Damage
from longvita.data.media.video import probe_video, read_frames
from tests.unit.data.media.films import FILMS, OPEN_GOP, h264, number_in


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
