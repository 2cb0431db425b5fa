"""Encodes messages, pictures and videos to prompts from headers alone; tiles are decoded when the model needs them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from longvita.config.schema import Config
from longvita.data.chat_template import ChatTemplate, mark_order
from longvita.data.document import media_settings
from longvita.data.errors import SampleError
from longvita.data.media.image import normalise
from longvita.data.media.item import (
    MediaItem,
    MediaSettings,
    PromptPicture,
    VideoItem,
    decode_tiles,
    order_media,
    probe_media,
)
from longvita.data.media.video import VideoFacts, frame_times
from longvita.data.sample import marks_of, parse_turns
from longvita.data.tokenizer import LongVITATokenizer
from longvita.inference.errors import PromptError
from longvita.inference.limits import check_prompt_length
from longvita.inference.media_key import MediaKey
from longvita.inference.prompt import Prompt, token_array


class MediaTiles:
    """Tiles of pictures and videos, decoded from their files on request."""

    def __init__(self, items: Sequence[MediaItem], settings: MediaSettings):
        self.items, self._settings = items, settings

    def load(self, indices: Sequence[int]) -> Tensor:
        """Decode and normalise tiles [len(indices), 3, H, W] float32, `indices` ascending. Raises MediaError."""
        return torch.from_numpy(normalise(self._decode(indices)))

    def pictures(self, indices: Sequence[int]) -> list[Image.Image]:
        """Return some tiles as the model receives them; `indices` ascend."""
        return [Image.fromarray(tile) for tile in self._decode(indices)]

    def _decode(self, indices: Sequence[int]) -> Any:
        return decode_tiles(self.items, self._settings, self._settings.max_num_frames, list(indices))

    def labels(self) -> list[str]:
        """Describe each tile in words: the file, and the frame with its time or the tile's number in its picture."""
        settings, labels = self._settings, []
        for item in self.items:
            name = Path(item.source).name if isinstance(item.source, (str, os.PathLike)) else "picture"
            if isinstance(item, VideoItem):
                times = frame_times(item.source, item.facts, settings.packet_store)
                frames = item.frames(settings, settings.max_num_frames)
                labels += [f"{name}, frame {frame} at {times[frame]:.1f} s" for frame in frames]
            else:
                count = item.num_tiles(settings, settings.max_num_frames)
                labels += [f"{name}, whole", *(f"{name}, tile {place} of {count - 1}" for place in range(1, count))]
        return labels


class PromptEncoder:
    """Encodes prompts for one tokenizer and model, and refuses those that do not fit."""

    def __init__(self, config: Config, tokenizer: LongVITATokenizer):
        if tokenizer.vocab_size > config.model.language.vocab_size:
            raise PromptError(
                f"the tokenizer has {tokenizer.vocab_size} tokens with Long-VITA's own, but the model's vocabulary has "
                f"{config.model.language.vocab_size} rows; give the model's own tokenizer with --tokenizer"
            )
        self.config = config
        self.template = ChatTemplate(tokenizer, config.model.tokens_per_tile)
        # Packet tables are those of training data: a question leaves no files.
        self.settings = dataclasses.replace(
            media_settings(config), max_num_frames=config.inference.max_num_frames, packet_tables=None
        )

    def encode(
        self,
        messages: Sequence[Any],
        images: Sequence[PromptPicture] = (),
        videos: Sequence[str | os.PathLike] = (),
        max_num_frames: int | None = None,
    ) -> Prompt:
        """Encode {"role", "content"} messages with a mark for each picture and video.

        max_num_frames: most frames of a video; inference.max_num_frames when None. No picture and no frame is decoded.
        Raises PromptError for media or messages that cannot be used, and LengthError for a prompt that leaves no room
        for an answer, with the number of frames that does.
        """
        settings = self.settings
        if max_num_frames is not None:
            settings = dataclasses.replace(settings, max_num_frames=max_num_frames)
        try:
            prompt = encode_prompt(messages, images, videos, self.template, settings)
        except (SampleError, OSError) as error:
            raise PromptError(str(error)) from error
        items = cast(MediaTiles, prompt.tiles).items
        videos_read = [item.facts for item in items if isinstance(item.facts, VideoFacts)]
        check_prompt_length(len(prompt), self.config, videos_read)
        return prompt


def encode_prompt(
    messages: Sequence[Any],
    images: Sequence[PromptPicture],
    videos: Sequence[str | os.PathLike],
    template: ChatTemplate,
    settings: MediaSettings,
) -> Prompt:
    """Encode {"role", "content"} messages (or Turns) to a prompt that ends where the assistant's answer begins.

    It is the template and the tiles of training, without labels. images: paths or PIL pictures, one for each `<image>`
    in the messages; videos: paths, one for each `<video>`. Without images (or videos) their marks are plain text, and
    so is any control token in the messages. Reads headers only. Raises SampleError (a turn without text, marks that do
    not match) and MediaError (a file that cannot be read).
    """
    turns = parse_turns(messages)
    facts = probe_media(images, videos, settings.max_fps)
    encoded = template.encode_prompt(turns, facts.grids(settings), facts.frame_counts(settings))
    items = tuple(order_media(mark_order(turns, marks_of(len(images), len(videos))), images, videos, facts))
    return Prompt(
        input_ids=token_array(encoded.input_ids),
        tile_starts=encoded.tile_starts.tolist(),
        tiles=MediaTiles(items, settings),
        tile_keys=[key for item in items for key in tile_keys(item, settings)],
    )


def tile_keys(item: MediaItem, settings: MediaSettings) -> Iterator[Hashable]:
    """Yield a key for each tile of a picture or video: its content, and the frame or tile number in it."""
    key = MediaKey(item.source)
    if isinstance(item, VideoItem):
        places: Sequence[int] = item.frames(settings, settings.max_num_frames)
    else:
        places = range(item.num_tiles(settings, settings.max_num_frames))
    yield from ((key, place) for place in places)
