"""Films for benchmarks of generation, a tokenizer for questions about them, and the number of frames that fit."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from longvita.config.sizes import frames_that_fit
from longvita.data.chat_template import ChatTemplate
from longvita.data.sample import Turn
from longvita.data.tokenizer import load_tokenizer

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a script's path does not include its repository
from tools.quickstart.digits import SIDE
from tools.quickstart.tokenizer import task_texts, train_tokenizer
from tools.quickstart.videos import write_mp4

GREY = (124, 116, 104)
"""The mean colour of ImageNet, which normalizes to zero."""


def write_tokenizer(folder: Path) -> None:
    """Write a small tokenizer with Long-VITA's control tokens."""
    train_tokenizer(task_texts(), folder)


def write_film(path: Path, frames: int, colours: Mapping[int, tuple[int, int, int]]) -> None:
    """Write an .mp4 of grey frames, one per second, except for the frames in `colours`."""

    def picture(number: int) -> np.ndarray:
        return np.full((SIDE, SIDE, 3), colours.get(number, GREY), np.uint8)

    write_mp4(path, (picture(number) for number in range(frames)))


def max_frames(tokenizer: Path, question: str, tokens: int, tokens_per_tile: int) -> int:
    """Number of frames that fit `tokens` together with the template and a question."""
    template = ChatTemplate(load_tokenizer(str(tokenizer)), tokens_per_tile)
    text = len(template.encode_prompt([Turn("user", question)], [], []).input_ids)
    return frames_that_fit(tokens, tokens_per_tile, text)
