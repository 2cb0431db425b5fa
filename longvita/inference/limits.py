"""Length limits, checked from token and frame counts alone, before weights are read or frames decoded."""

from __future__ import annotations

from collections.abc import Sequence

from longvita.config.schema import TILE_MARKERS, Config
from longvita.data.media.video import VideoFacts, count_frames, max_frames_that_fit
from longvita.errors import UserError


class LengthError(UserError, ValueError):
    """An input that is too long, or a limit beyond what the model allows."""


def check_max_seq_len(config: Config) -> None:
    """Check that inference.max_seq_len is within the model's positions. Raises LengthError."""
    wanted, most = config.inference.max_seq_len, config.model.language.max_position_embeddings
    if wanted > most:
        raise LengthError(f"--max-seq-len is {wanted}, but the model has {most} positions; set it to {most} at most")


def room_for(prompt_tokens: int, config: Config) -> int:
    """Return the tokens that inference.max_seq_len leaves for an answer. Raises LengthError when there are none."""
    limit = config.inference.max_seq_len
    if prompt_tokens < 1:
        raise LengthError("the prompt is empty; ask a question")
    if prompt_tokens >= limit:
        raise LengthError(
            f"the input is {prompt_tokens} tokens and its answer needs at least one more, but --max-seq-len is {limit}"
        )
    return limit - prompt_tokens


def describe_cut(max_new_tokens: int, room: int, config: Config) -> str:
    """Describe which of the two limits cut an answer off: its own, or the `room` that the prompt left."""
    if max_new_tokens <= room:
        return f"the answer is cut off: it has {max_new_tokens} tokens; fix: raise --max-new-tokens"
    limit = config.inference.max_seq_len
    return f"the answer is cut off: prompt and answer have {limit} tokens together; fix: raise --max-seq-len"


def check_prompt_length(prompt_tokens: int, config: Config, videos: Sequence[VideoFacts]) -> None:
    """Check that a prompt leaves room for an answer.

    `prompt_tokens` counts at most inference.max_num_frames frames of each of its `videos`. Raises LengthError with both
    numbers and the --max-num-frames that fits.
    """
    try:
        room_for(prompt_tokens, config)
    except LengthError as error:
        raise LengthError(f"{error}; {_advice(prompt_tokens, config, videos)}") from None


def _advice(prompt_tokens: int, config: Config, videos: Sequence[VideoFacts]) -> str:
    inference, max_fps = config.inference, config.data.max_fps
    most = config.model.language.max_position_embeddings
    longer = f"raise --max-seq-len (at most {most})" if most > inference.max_seq_len else "ask less at once"
    if not videos:
        return f"shorten the text, show fewer pictures, or {longer}"
    # Each frame has the markers <vid> and </vid> around it.
    per_frame = config.model.tokens_per_tile + TILE_MARKERS
    frames = sum(count_frames(video, max_fps, inference.max_num_frames) for video in videos)
    rest = prompt_tokens - frames * per_frame
    room = (inference.max_seq_len - 1 - rest) // per_frame
    fitting = max_frames_that_fit(videos, max_fps, inference.max_num_frames, room)
    if fitting is None:
        return f"no --max-num-frames fits with {rest} tokens of text and pictures: shorten them, or {longer}"
    return f"--max-num-frames {fitting} fits, or {longer}"
