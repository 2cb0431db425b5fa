"""Messages, pictures and videos to a prompt: the same template and tiles as in training, without labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longvita.data.chat_template import ChatTemplate, mark_order
from longvita.data.media.image import normalise
from longvita.data.media.item import (
    MediaItem,
    MediaSettings,
    MediaSource,
    decode_tiles,
    order_media,
    probe_media,
)
from longvita.data.sample import Turn, parse_turns


@dataclass(frozen=True)
class Prompt:
    """A prompt as tokens, and its tiles still to be decoded."""

    input_ids: Tensor
    """[t] int64."""
    tile_starts: Tensor
    """[n] int64, position of the first token of each tile or frame, ascending."""
    items: tuple[MediaItem, ...]
    """Its pictures and videos, in the order of their marks."""
    settings: MediaSettings

    @property
    def num_tiles(self) -> int:
        """Tiles and frames."""
        return len(self.tile_starts)

    def decode(self, wanted: Sequence[int] | None = None) -> Tensor:
        """float32 [k, 3, S, S]: the tiles `wanted` (ascending; all when None), normalised. Raises MediaError."""
        numbers = range(self.num_tiles) if wanted is None else list(wanted)
        pixels = decode_tiles(self.items, self.settings, self.settings.max_num_frames, numbers)
        return torch.from_numpy(normalise(pixels))


def encode_prompt(
    messages: Sequence[Any],
    images: Sequence[MediaSource],
    videos: Sequence[str | os.PathLike],
    template: ChatTemplate,
    settings: MediaSettings,
) -> Prompt:
    """A prompt of {"role", "content"} messages (or Turns), ending where the assistant's answer begins.

    images: paths or PIL pictures, one for each `<image>` in the messages; videos: paths, one for each `<video>`. Where
    none are given, the marks are text like any other; control tokens in the text always are. Only headers are read.
    Raises SampleError (a turn without text, marks that do not match) and MediaError (a file that cannot be read).
    """
    turns = parse_turns(messages)
    facts = probe_media(images, videos, settings.max_fps)
    encoded = template.encode_prompt(turns, facts.grids(settings), facts.frame_counts(settings))
    return Prompt(
        input_ids=torch.from_numpy(encoded.input_ids),
        tile_starts=torch.from_numpy(encoded.tile_starts),
        items=tuple(order_media(_given_marks(turns, images, videos), images, videos, facts)),
        settings=settings,
    )


def _given_marks(turns: Sequence[Turn], images: Sequence, videos: Sequence) -> list[bool]:
    """mark_order, of the marks alone that stand for something."""
    return [video for video in mark_order(turns) if (videos if video else images)]
