"""Questions about pictures and videos to prompts, from headers alone; tiles are decoded when the model needs them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from longvita.config.schema import Config
from longvita.data.chat_template import ChatTemplate
from longvita.data.document import media_settings
from longvita.data.errors import SampleError
from longvita.data.media.item import MediaItem, MediaSettings, MediaSource, decode_tiles
from longvita.data.media.video import VideoFacts, selected_frames
from longvita.data.tokenizer import LongVITATokenizer
from longvita.errors import UserError
from longvita.inference import encoded_prompt as data_prompt
from longvita.inference.limits import check_prompt_length
from longvita.inference.media_key import MediaKey
from longvita.inference.prompt import Prompt, token_array


class PromptError(UserError, ValueError):
    """A question, picture or video that cannot be used."""


class MediaTiles:
    """Tiles of an encoded prompt, decoded from their files when asked for."""

    def __init__(self, encoded: data_prompt.Prompt):
        self._encoded = encoded

    def load(self, indices: Sequence[int]) -> Tensor:
        """See TileSource."""
        return self._encoded.decode(indices)

    def pictures(self, indices: Sequence[int]) -> list[Image.Image]:
        """Some tiles as the model sees them; `indices` ascend."""
        encoded = self._encoded
        pixels = decode_tiles(encoded.items, encoded.settings, encoded.settings.max_num_frames, indices)
        return [Image.fromarray(tile) for tile in pixels]

    def labels(self) -> list[str]:
        """For people, what each tile is: the file and its frame with the time, or which of a picture's tiles it is."""
        settings, labels = self._encoded.settings, []
        for item in self._encoded.items:
            name = Path(item.source).name if isinstance(item.source, (str, os.PathLike)) else "picture"
            if isinstance(item.facts, VideoFacts):
                frames = selected_frames(item.facts, settings.max_fps, settings.max_num_frames)
                labels += [f"{name}, frame {frame} at {frame / item.facts.fps:.1f} s" for frame in frames]
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
        self.settings = dataclasses.replace(media_settings(config), max_num_frames=config.inference.max_num_frames)

    def encode(
        self,
        messages: Sequence[Any],
        images: Sequence[MediaSource] = (),
        videos: Sequence[str | os.PathLike] = (),
        max_num_frames: int | None = None,
    ) -> Prompt:
        """The prompt of {"role", "content"} messages with a mark for each picture and video.

        max_num_frames: most frames of a video, where it is not inference.max_num_frames. No picture and no frame is
        decoded. Raises PromptError for media or messages that cannot be used and LengthError for a prompt that leaves
        no room for an answer, naming the number of frames that does.
        """
        settings = self.settings
        if max_num_frames is not None:
            settings = dataclasses.replace(settings, max_num_frames=max_num_frames)
        try:
            encoded = data_prompt.encode_prompt(messages, images, videos, self.template, settings)
        except SampleError as error:
            raise PromptError(str(error)) from error
        lengths = [item.facts for item in encoded.items if isinstance(item.facts, VideoFacts)]
        check_prompt_length(len(encoded.input_ids), self.config, lengths)
        keys = [key for item in encoded.items for key in tile_keys(item, settings)]
        return Prompt(token_array(encoded.input_ids.numpy()), encoded.tile_starts.tolist(), MediaTiles(encoded), keys)


def tile_keys(item: MediaItem, settings: MediaSettings) -> Iterator[Hashable]:
    """For each tile of a picture or video, what tells it from every other: the content it is of, its place in it."""
    key = MediaKey(item.source)
    if isinstance(item.facts, VideoFacts):
        places: Sequence[int] = selected_frames(item.facts, settings.max_fps, settings.max_num_frames)
    else:
        places = range(item.num_tiles(settings, settings.max_num_frames))
    yield from ((key, place) for place in places)
