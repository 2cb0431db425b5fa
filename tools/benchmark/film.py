"""Films for benchmarks of generation, a tokenizer for the questions about them, and how many frames fit a length."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from longvita.config.sizes import frames_that_fit
from longvita.data.chat_template import ChatTemplate
from longvita.data.sample import Turn
from longvita.data.tokenizer import load_tokenizer

sys.path.append(str(Path(__file__).resolve().parents[2]))  # a benchmark runs as a script, without its repository
from tools.quickstart.digits import SIDE
from tools.quickstart.tokenizer import task_texts, train_tokenizer
from tools.quickstart.videos import write_mp4

GREY = (124, 116, 104)
"""The mean colour of ImageNet: zero once normalised."""


def write_tokenizer(folder: Path) -> None:
    """A small tokenizer with Long-VITA's control tokens."""
    train_tokenizer(task_texts(), folder)


def write_film(path: Path, frames: int, colours: Mapping[int, tuple[int, int, int]]) -> None:
    """An .mp4 of grey frames, one a second, but for the frames that `colours` names."""

    def picture(number: int) -> np.ndarray:
        return np.full((SIDE, SIDE, 3), colours.get(number, GREY), np.uint8)

    write_mp4(path, (picture(number) for number in range(frames)))


def most_frames(tokenizer: Path, question: str, tokens: int, tokens_per_tile: int) -> int:
    """Frames that fit `tokens` with the template and a question about them."""
    template = ChatTemplate(load_tokenizer(str(tokenizer)), tokens_per_tile)
    text = len(template.encode_prompt([Turn("user", question)], [], []).input_ids)
    return frames_that_fit(tokens, tokens_per_tile, text)
