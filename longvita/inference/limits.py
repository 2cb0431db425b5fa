"""What fits: lengths are checked from token and frame counts alone, before weights are read or frames decoded."""

from __future__ import annotations

from collections.abc import Sequence

from longvita.config.schema import TILE_MARKERS, Config
from longvita.data.media.video import VideoFacts, count_frames, max_frames_that_fit
from longvita.errors import UserError


class LengthError(UserError, ValueError):
    """An input, or a limit, that is longer than what it must fit in."""


def check_max_seq_len(config: Config) -> None:
    """Raises LengthError when inference.max_seq_len is beyond the model's positions."""
    wanted, most = config.inference.max_seq_len, config.model.language.max_position_embeddings
    if wanted > most:
        raise LengthError(f"--max_seq_len is {wanted}, but the model has {most} positions; set it to {most} at most")


def room_for(prompt_tokens: int, config: Config) -> int:
    """Tokens of answer for which inference.max_seq_len leaves room. Raises LengthError when there is none."""
    limit = config.inference.max_seq_len
    if prompt_tokens < 1:
        raise LengthError("the prompt is empty; ask a question")
    if prompt_tokens >= limit:
        raise LengthError(
            f"the input is {prompt_tokens} tokens and its answer needs at least one more, but --max_seq_len is {limit}"
        )
    return limit - prompt_tokens


def check_prompt_length(prompt_tokens: int, config: Config, videos: Sequence[VideoFacts]) -> None:
    """Refuses a prompt that leaves no room for an answer.

    `prompt_tokens` counts at most inference.max_num_frames frames of each of its `videos`.
    Raises LengthError with both numbers and the --max_num_frame that fits.
    """
    try:
        room_for(prompt_tokens, config)
    except LengthError as error:
        raise LengthError(f"{error}; {_advice(prompt_tokens, config, videos)}") from None


def _advice(prompt_tokens: int, config: Config, videos: Sequence[VideoFacts]) -> str:
    inference, max_fps = config.inference, config.data.max_fps
    most = config.model.language.max_position_embeddings
    longer = f"raise --max_seq_len (at most {most})" if most > inference.max_seq_len else "ask less at once"
    if not videos:
        return f"shorten the text, show fewer pictures, or {longer}"
    # A frame stands between <vid> and </vid>.
    per_frame = config.model.tokens_per_tile + TILE_MARKERS
    frames = sum(count_frames(video, max_fps, inference.max_num_frames) for video in videos)
    rest = prompt_tokens - frames * per_frame
    room = (inference.max_seq_len - 1 - rest) // per_frame
    fitting = max_frames_that_fit(videos, max_fps, inference.max_num_frames, room)
    if fitting is None:
        return f"no --max_num_frame fits beside {rest} tokens of text and pictures: shorten them, or {longer}"
    return f"--max_num_frame {fitting} fits, or {longer}"
