"""Prompts of pictures and videos without a config: marks, tiles and refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longvita.data.errors import MediaError, SampleError
from longvita.data.media.image import normalise, tile_image
from longvita.data.media.item import MediaSettings
from longvita.data.media.pictures.picture_file import open_picture
from longvita.data.media.video import frame_indices, read_frames
from longvita.inference.prompt_encoder import encode_prompt
from tests.unit.data.material import picture

SETTINGS = MediaSettings(image_size=28, max_num_tiles=4, max_num_frames=8, max_fps=1.0)


def every_tile(prompt):
    return prompt.tiles.load(range(len(prompt.tile_starts)))


def ask(text):
    return [{"role": "user", "content": text}]


def test_pictures_and_videos_in_the_order_of_their_marks(stock, template):
    media = stock / "media"
    prompt = encode_prompt(ask("<video>then <image>"), [media / "wide.jpg"], [media / "clip.mp4"], template, SETTINGS)
    tiles = every_tile(prompt)
    frames = len(frame_indices(40, 4.0, 1.0, 8))
    pictures = tile_image(open_picture(media / "wide.jpg"), 4, 28).tiles
    assert len(prompt.tile_starts) == len(tiles) == frames + len(pictures)
    torch.testing.assert_close(tiles[frames:], pictures, rtol=0, atol=0)
    first = np.asarray(next(read_frames(media / "clip.mp4", [0])).resize((28, 21)))
    assert np.abs(tiles[0][:, 3:24].numpy() - normalise(first[None])[0]).mean() < 0.3


def test_some_tiles_alone(stock, template):
    media = stock / "media"
    prompt = encode_prompt(ask("<image><video>"), [media / "wide.jpg"], [media / "clip.mp4"], template, SETTINGS)
    every = every_tile(prompt)
    for wanted in ([0], [2, 3], [1, len(every) - 1], []):
        torch.testing.assert_close(prompt.tiles.load(wanted), every[wanted], rtol=0, atol=0)


def test_a_picture_in_memory(template):
    prompt = encode_prompt(ask("<image>?"), [picture()], [], template, SETTINGS)
    torch.testing.assert_close(every_tile(prompt), tile_image(picture(), 4, 28).tiles, rtol=0, atol=0)


def test_a_folder_of_frames(stock, template):
    prompt = encode_prompt(ask("<video>?"), [], [stock / "media/frames"], template, SETTINGS)
    assert every_tile(prompt).shape == (8, 3, 28, 28)


@pytest.mark.parametrize("text, images", [("?", ["one.png"]), ("<image>", ["one.png", "one.png"])])
def test_marks_must_match(stock, template, text, images):
    with pytest.raises(SampleError, match=f"{text.count('<image>')} <image> marks for {len(images)} pictures"):
        encode_prompt(ask(text), [stock / "media" / name for name in images], [], template, SETTINGS)


def test_missing_media(stock, template):
    with pytest.raises(MediaError, match="does not exist"):
        encode_prompt(ask("<video>"), [], [stock / "none.mp4"], template, SETTINGS)
