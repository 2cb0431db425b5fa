from __future__ import annotations

import os
import shutil
import struct
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvita.data.errors import MediaError, Reason
from longvita.data.media import video
from longvita.data.media.video import (
    VideoFacts,
    count_frames,
    folder_indices,
    frame_indices,
    max_frames_that_fit,
    probe_video,
    read_frames,
    selected_frames,
)
from tests.clips import clip
from tests.programs import need_programs
from tests.unit.data.material import clip_frames, write_video

FACTS = st.builds(
    VideoFacts,
    num_frames=st.integers(1, 3000),
    fps=st.floats(0.1, 120),
    is_folder=st.booleans(),
)


@given(FACTS, st.floats(0.1, 5), st.integers(1, 300))
def test_the_count_of_frames_is_that_of_the_list(facts, max_fps, limit):
    chosen = selected_frames(facts, max_fps, limit)
    assert count_frames(facts, max_fps, limit) == len(chosen) <= limit
    assert chosen == sorted(chosen)
    assert all(0 <= index < facts.num_frames for index in chosen)


@given(st.lists(FACTS, min_size=1, max_size=3), st.floats(0.5, 3), st.integers(1, 200), st.integers(0, 300))
def test_the_largest_frame_limit_that_fits(videos, max_fps, most, room):
    def total(limit):
        return sum(count_frames(facts, max_fps, limit) for facts in videos)

    fitting = max_frames_that_fit(videos, max_fps, most, room)
    if fitting is None:
        assert total(1) > room
    else:
        assert total(fitting) <= room
        assert fitting == most or total(fitting + 1) > room


def test_folder_rule():
    assert folder_indices(11, max_fps=1, max_num_frames=8) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert folder_indices(20, max_fps=1, max_num_frames=8) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert folder_indices(5, max_fps=1, max_num_frames=8) == [0, 1, 2, 3, 4]
    assert folder_indices(1, max_fps=0.5, max_num_frames=8) == []


def test_long_video_at_the_published_limit():
    assert len(frame_indices(30 * 3600 * 2, 30, 1, 4064)) == 4064


class TestFiles:
    def test_a_title_in_latin_1(self, tmp_path):
        need_programs("ffmpeg")
        path = write_video(tmp_path / "a.mkv", count=5)
        ffmpeg = ["ffmpeg", "-v", "error", "-i", path, "-c", "copy", "-metadata", "title=cafXe", tmp_path / "b.mkv"]
        subprocess.run(ffmpeg, check=True)
        content = (tmp_path / "b.mkv").read_bytes()
        assert content.count(b"cafXe") == 1
        (tmp_path / "b.mkv").write_bytes(content.replace(b"cafXe", b"caf\xe9e"))
        assert probe_video(tmp_path / "b.mkv").num_frames == 5
        assert len(list(read_frames(tmp_path / "b.mkv", [0, 3]))) == 2

    def test_header(self, stock):
        assert probe_video(stock / "media/clip.mp4") == VideoFacts(40, 4.0)

    def test_selected_frames_alone_in_order(self, stock):
        frames = list(read_frames(stock / "media/clip.mp4", [0, 7, 8, 30, 39]))
        drawn = clip_frames(40)
        for frame, number in zip(frames, [0, 7, 8, 30, 39], strict=True):
            distances = [np.abs(np.asarray(frame).astype(int) - other).mean() for other in drawn]
            assert int(np.argmin(distances)) == number

    def test_both_decoders_give_the_same_pixels(self, stock):
        indices = [0, 0, 1, 1, *range(3, 40, 3)]
        path = stock / "media/clip.mp4"
        ours = [np.asarray(frame) for frame in read_frames(path, indices)]
        theirs = [np.asarray(frame) for frame in video._read_with_decord(path, indices, lambda: None)]
        np.testing.assert_array_equal(ours, theirs)

    def test_decord_reads_a_film_that_pyav_has_no_decoder_for(self, stock, monkeypatch):
        path = stock / "media/clip.mp4"
        whole = [np.asarray(frame) for frame in read_frames(path, [0, 5, 20])]

        def without_decoder(*arguments):
            raise video.NoDecoderError("none")
            yield

        assert video._probe_with_decord(path) == probe_video(path)
        monkeypatch.setattr(video, "read_with_pyav", without_decoder)
        np.testing.assert_array_equal([np.asarray(frame) for frame in read_frames(path, [0, 5, 20])], whole)

    @pytest.mark.parametrize("width", [16, 66, 96])
    def test_decord_gives_three_channels_of_a_narrow_film(self, tmp_path, width):
        path = write_video(tmp_path / "narrow.mp4", count=4, size=(width, 48))
        for picture in video._read_with_decord(path, [0, 3], lambda: None):
            assert np.asarray(picture).shape == (48, width, 3)

    def test_decord_gives_the_right_frames_far_apart(self):
        """Its seeks are not used: in an hour of film they returned wrong frames."""
        path, indices = clip("bikes.mp4"), [0, 90, 90, 200, 249]
        ours = [np.asarray(frame) for frame in read_frames(path, indices)]
        np.testing.assert_array_equal(
            [np.asarray(f) for f in video._read_with_decord(path, indices, lambda: None)], ours
        )

    @pytest.mark.parametrize("quarter_turns", [1, 2, 3])
    def test_a_turned_video_is_upright(self, stock, tmp_path, quarter_turns):
        path = tmp_path / "turned.mp4"
        content = bytearray((stock / "media/clip.mp4").read_bytes())
        matrix = content.find(b"tkhd") + 4 + 40  # After version, times, track, duration, layer and volume.
        one = 1 << 16
        turns = {1: (0, one, -one, 0), 2: (-one, 0, 0, -one), 3: (0, -one, one, 0)}
        a, b, c, d = turns[quarter_turns]
        content[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(content)
        upright = [np.asarray(frame) for frame in read_frames(path, [3])]
        by_hand = np.rot90(np.asarray(next(read_frames(stock / "media/clip.mp4", [3]))), -quarter_turns)
        np.testing.assert_array_equal(upright[0], by_hand)

    def test_beats(self, stock):
        beats = []
        list(read_frames(stock / "media/clip.mp4", range(20), heartbeat=lambda: beats.append(1)))
        assert len(beats) >= 3

    def test_a_stall_is_an_error(self, stock):
        with pytest.raises(MediaError, match="frame 39 is not decoded within"):
            list(read_frames(stock / "media/clip.mp4", [39], -1.0))


class TestFolders:
    def test_natural_order(self, stock):
        names = [path.name for path in video.list_frames(stock / "media/frames")]
        assert names == [f"frame{number}.png" for number in range(1, 12)]

    def test_frames(self, stock):
        assert probe_video(stock / "media/frames") == VideoFacts(11, 1.0, is_folder=True)
        frames = list(read_frames(stock / "media/frames", [1, 9]))
        drawn = clip_frames(11)
        np.testing.assert_array_equal([np.asarray(frame) for frame in frames], [drawn[1], drawn[9]])

    def test_other_files_are_no_frames(self, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(MediaError, match="without a .png, .jpg or .jpeg file"):
            probe_video(tmp_path)

    def test_a_deleted_frame(self, stock):
        with pytest.raises(MediaError, match="has 11 frames, frame 40 is requested"):
            list(read_frames(stock / "media/frames", [0, 40]))


class TestDamage:
    @pytest.mark.parametrize(
        "name, message",
        [
            ("zero.mp4", "cannot be opened"),
            ("text.mp4", "cannot be opened"),
            ("audio.mp4", "has no video stream"),
            ("empty", "is a folder without"),
        ],
    )
    def test_broken_header(self, stock, name, message):
        with pytest.raises(MediaError, match=message) as caught:
            probe_video(stock / "media" / name)
        assert caught.value.reason == Reason.BROKEN_VIDEO

    def test_missing(self, tmp_path):
        with pytest.raises(MediaError, match="does not exist") as caught:
            probe_video(tmp_path / "none.mp4")
        assert caught.value.reason == Reason.MISSING_FILE

    def test_a_pipe_is_no_video(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.mp4")
        with pytest.raises(MediaError, match="is no regular file"):
            probe_video(tmp_path / "pipe.mp4")

    @pytest.mark.parametrize("list_of", ["hls", "concat"])
    def test_a_list_of_other_files_is_no_video(self, tmp_path, list_of):
        """FFmpeg detects the format by content and would read a file outside the media root."""
        outside = write_video(tmp_path / "outside.mp4")
        texts = {
            "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{outside}\n#EXT-X-ENDLIST\n",
            "concat": f"ffconcat version 1.0\nfile '{outside.name}'\n",
        }
        path = tmp_path / "list.m3u8"
        path.write_text(texts[list_of])
        with pytest.raises(MediaError, match="cannot be opened") as caught:
            probe_video(path)
        assert caught.value.reason == Reason.BROKEN_VIDEO
        with pytest.raises(MediaError, match="cannot be opened"):
            list(read_frames(path, [0]))

    def test_strange_names_of_frames(self, stock, tmp_path):
        for name in ("²1.png", "①.png", "frame10.png", "frame9.png"):
            shutil.copy(stock / "media" / "one.png", tmp_path / name)
        assert probe_video(tmp_path).num_frames == 4
        assert [frame.name for frame in video.list_frames(tmp_path)][:2] == ["frame9.png", "frame10.png"]

    def test_index_lost(self, tmp_path):
        path = write_video(tmp_path / "whole.mp4")
        content = path.read_bytes()
        assert content.count(b"moov") == 1
        path.write_bytes(content.replace(b"moov", b"lost"))
        with pytest.raises(MediaError, match="cannot be opened"):
            probe_video(path)

    def test_half_a_file_with_a_good_header(self, stock):
        """The header names all frames; the early ones are read, the late ones are an error, never a repeated frame."""
        path = stock / "media/cut.mp4"
        assert probe_video(path).num_frames == 40
        assert len(list(read_frames(path, [0, 2]))) == 2
        with pytest.raises(MediaError, match="frame 39 cannot be read: the file ends early, 7 of") as caught:
            list(read_frames(path, [0, 39]))
        assert caught.value.reason == Reason.BROKEN_VIDEO

    def test_damage_in_the_middle(self, stock, tmp_path):
        content = bytearray((stock / "media/clip.mp4").read_bytes())
        middle = len(content) // 2
        content[middle : middle + 4000] = bytes(4000)
        (tmp_path / "damaged.mp4").write_bytes(content)
        with pytest.raises(
            MediaError, match=r"damaged.mp4: frame \d+ cannot be read: the frame is damaged: "
        ) as caught:
            list(read_frames(tmp_path / "damaged.mp4", range(40)))
        assert caught.value.reason == Reason.BROKEN_VIDEO
