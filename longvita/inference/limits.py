"""What fits: lengths are checked from token and frame counts alone, before weights are read or frames decoded."""

from __future__ import annotations

from collections.abc import Callable

from longvita.config.schema import Config
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
            f"the input is {prompt_tokens} tokens and needs one more for an answer, but --max_seq_len is {limit}"
        )
    return limit - prompt_tokens


def check_prompt_length(prompt_tokens: int, config: Config, frames_at: Callable[[int], int]) -> None:
    """Refuses a prompt that leaves no room for an answer.

    Args:
        prompt_tokens: length of the prompt with at most inference.max_num_frames frames a video.
        config: the run's config.
        frames_at: frames of all its videos together when each has at most this many (0 gives 0).

    Raises LengthError with both numbers and the --max_num_frame that fits.
    """
    try:
        room_for(prompt_tokens, config)
    except LengthError as error:
        raise LengthError(f"{error}; {_advice(prompt_tokens, config, frames_at)}") from None


def _advice(prompt_tokens: int, config: Config, frames_at: Callable[[int], int]) -> str:
    limit, frames = config.inference.max_seq_len, frames_at(config.inference.max_num_frames)
    fitting = _most_frames(prompt_tokens, config, frames_at)
    if fitting:
        return f"--max_num_frame {fitting} fits"
    most = config.model.language.max_position_embeddings
    longer = f"raise --max_seq_len (at most {most})" if most > limit else "it is at the model's most already"
    without = prompt_tokens - frames * _frame_tokens(config)
    if frames:
        return f"no --max_num_frame fits, since {without} tokens are text and pictures: shorten them, or {longer}"
    return f"shorten the text, show fewer pictures, or {longer}"


def _most_frames(prompt_tokens: int, config: Config, frames_at: Callable[[int], int]) -> int:
    """The largest number of frames a video with which the prompt fits, 0 if there is none."""
    limit, most = config.inference.max_seq_len, config.inference.max_num_frames
    all_frames = frames_at(most)

    def fits(count: int) -> bool:
        return prompt_tokens - (all_frames - frames_at(count)) * _frame_tokens(config) < limit

    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low if fits(low) and frames_at(low) else 0


def _frame_tokens(config: Config) -> int:
    # A frame stands between <vid> and </vid>.
    return config.model.tokens_per_tile + 2
