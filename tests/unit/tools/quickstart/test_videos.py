"""Videos: the project's reader decodes the written frames."""

from __future__ import annotations

import numpy as np

from longvita.data.media.video import frame_indices, probe_video, read_frames
from tools.quickstart import digits, videos


def test_frames_survive_the_file(tmp_path):
    rng = np.random.default_rng(0)
    scans = digits.load().scans
    drawn = [digits.draw(scans[number], rng, 1.0) for number in range(6)]
    drawn += [videos.draw_marker(rng), videos.draw_noise(rng)] * 3
    path = tmp_path / "clip.mp4"
    videos.write_mp4(path, drawn)
    facts = probe_video(path)
    assert (facts.num_frames, facts.fps) == (len(drawn), 1.0)
    assert frame_indices(facts.num_frames, facts.fps, 1.0, len(drawn)) == list(range(len(drawn)))
    read = read_frames(path, range(len(drawn)))
    for wanted, found in zip(drawn, read, strict=True):
        difference = np.abs(wanted.astype(int) - np.asarray(found).astype(int))
        assert difference.shape == (56, 56, 3)
        assert difference.mean() < 3


def test_markers_and_noise_differ_from_digits():
    rng = np.random.default_rng(1)
    markers = {videos.draw_marker(rng).tobytes() for _ in range(20)}
    assert len(markers) == 2, "the checkerboard starts with either colour"
    assert set(np.unique(videos.draw_marker(rng))) == {0, 255}
    noise = [videos.draw_noise(rng) for _ in range(5)]
    assert len({frame.tobytes() for frame in noise}) == 5
