"""What is refused for its length, and what the refusal says."""

from __future__ import annotations

import pytest

from longvita.config.schema import Config
from longvita.data.media.video import VideoFacts
from longvita.inference.limits import LengthError, check_max_seq_len, check_prompt_length, room_for


def config(max_seq_len: int, max_num_frames: int = 64) -> Config:
    return Config.model_validate({"inference": {"max_seq_len": max_seq_len, "max_num_frames": max_num_frames}})


def test_the_limit_may_reach_the_models_positions_and_not_pass_them() -> None:
    check_max_seq_len(config(1_310_720))
    with pytest.raises(LengthError, match="--max-seq-len is 1310721, but the model has 1310720 positions"):
        check_max_seq_len(config(1_310_721))


def test_room_is_what_the_prompt_leaves() -> None:
    assert room_for(100, config(128)) == 28
    assert room_for(127, config(128)) == 1
    for length in (128, 129):
        with pytest.raises(LengthError, match=f"input is {length} tokens .* --max-seq-len is 128"):
            room_for(length, config(128))
    with pytest.raises(LengthError, match="empty"):
        room_for(0, config(128))


@pytest.mark.parametrize(("limit", "most"), [(16_384, 63), (32_768, 126), (131_072, 507), (1_048_576, 4_064)])
def test_refusal_names_the_frames_that_fit(limit: int, most: int) -> None:
    text, video = 50, VideoFacts(5_000, 1.0)
    with pytest.raises(LengthError) as caught:
        check_prompt_length(text + 258 * 5_000, config(limit, max_num_frames=10_000), [video])
    assert str(text + 258 * 5_000) in str(caught.value)
    assert str(limit) in str(caught.value)
    assert f"--max-num-frames {most} fits" in str(caught.value)
    check_prompt_length(text + 258 * most, config(limit, most), [video])
    with pytest.raises(LengthError):
        check_prompt_length(text + 258 * (most + 1), config(limit, most + 1), [video])


def test_frames_of_several_videos_are_counted_together() -> None:
    videos = [VideoFacts(length, 1.0, is_folder=True) for length in (10, 200, 300)]
    with pytest.raises(LengthError, match="--max-num-frames 26 fits"):
        check_prompt_length(100 + 258 * 510, config(16_384, 1_000), videos)


def test_text_that_is_too_long_by_itself_is_reported() -> None:
    with pytest.raises(LengthError, match="no --max-num-frames fits with 17000 tokens of text and pictures"):
        check_prompt_length(17_000 + 258 * 4, config(16_384), [VideoFacts(4, 1.0, is_folder=True)])
    with pytest.raises(LengthError, match=r"shorten the text.*raise --max-seq-len \(at most 1310720\)"):
        check_prompt_length(17_000, config(16_384), [])


def test_at_the_models_own_limit_nothing_longer_is_advised() -> None:
    with pytest.raises(LengthError, match=r"--max-seq-len is 1310720; .*ask less at once$"):
        check_prompt_length(1_310_720, config(1_310_720), [])
