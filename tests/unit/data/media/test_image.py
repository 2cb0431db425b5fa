from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from longvita.data.errors import MediaError
from longvita.data.media import image
from longvita.data.media.image import IMAGE_MEAN, choose_grid, cut_tiles, normalise, resize, square_tile, tile_image
from tests.unit.data.material import picture


def pixels(value: Image.Image) -> np.ndarray:
    return np.asarray(value)


@pytest.mark.parametrize("limit", [1, 4, 12])
@pytest.mark.parametrize("size", [(451, 300), (300, 451), (40, 400), (400, 400)])
def test_grid_is_the_nearest_in_aspect_ratio(size, limit):
    grid = choose_grid(*size, limit, 100)
    assert grid.columns * grid.rows <= limit
    nearest = min(
        abs(size[0] / size[1] - columns / rows)
        for columns in range(1, limit + 1)
        for rows in range(1, limit + 1)
        if columns * rows <= limit
    )
    assert abs(size[0] / size[1] - grid.columns / grid.rows) == nearest


def test_a_tie_goes_to_the_larger_grid_for_large_pictures_only():
    assert choose_grid(100, 100, 12, 100) == choose_grid(99, 99, 12, 100)
    small, large = choose_grid(100, 100, 12, 100), choose_grid(1000, 1000, 12, 100)
    assert (small.columns, small.rows) == (1, 1)
    assert (large.columns, large.rows) == (3, 3)


def test_tiles_are_the_thumbnail_and_then_the_cut_picture():
    photograph = picture()
    tiled = tile_image(photograph, max_num_tiles=6, image_size=32)
    assert (tiled.columns, tiled.rows) == (3, 2)
    assert tiled.tiles.shape == (7, 3, 32, 32)
    thumbnail = normalise(pixels(resize(photograph, (32, 32)))[None])
    np.testing.assert_array_equal(tiled.tiles[:1], thumbnail)
    whole = pixels(resize(photograph, (96, 64)))
    np.testing.assert_array_equal(tiled.tiles[5:6], normalise(whole[None, 32:, 32:64]))


def test_one_tile_has_no_thumbnail():
    tiled = tile_image(picture().crop((0, 0, 300, 300)), max_num_tiles=1, image_size=32)
    assert tiled.tiles.shape == (1, 3, 32, 32)


def test_wanted_tiles_are_the_same_as_all_tiles_cut():
    photograph = picture("coffee")
    grid = choose_grid(*photograph.size, 12, 28)
    every = cut_tiles(photograph, grid, 28, range(grid.num_tiles))
    np.testing.assert_array_equal(cut_tiles(photograph, grid, 28, [0, 3, 5]), every[[0, 3, 5]])


def test_tiles_are_cut_into_memory_that_is_given():
    photograph = picture("coffee")
    grid = choose_grid(*photograph.size, 12, 28)
    out = np.zeros((2, 28, 28, 3), np.uint8)
    cut_tiles(photograph, grid, 28, [0, 2], out)
    np.testing.assert_array_equal(out, cut_tiles(photograph, grid, 28, [0, 2]))


def test_normalise_is_exact_for_every_value():
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    for colour in range(3):
        expected = (scaled - np.float32(IMAGE_MEAN[colour])) / np.float32(image.IMAGE_STD[colour])
        np.testing.assert_array_equal(normalise(values)[0, colour].ravel(), expected)


def test_normalise_matches_its_definition():
    values = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    expected = (values / 255.0 - IMAGE_MEAN) / image.IMAGE_STD
    np.testing.assert_allclose(normalise(values), expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_a_frame_whose_square_would_be_too_large():
    with pytest.raises(MediaError, match="20 x 30000 pixels"):
        square_tile(Image.new("RGB", (20, 30000)), 28)


def test_square_tile_pads_with_the_mean_colour():
    tile = square_tile(Image.new("RGB", (60, 30), (255, 0, 0)), 60)
    assert tile[30, 30].tolist() == [255, 0, 0]
    assert tile[0, 0].tolist() == list(image.PADDING_COLOUR)
    assert tile[59, 59].tolist() == list(image.PADDING_COLOUR)


@pytest.mark.parametrize("side", [30, 64, 100])
@pytest.mark.parametrize("size", [(64, 36), (63, 36), (36, 64), (36, 63), (64, 64), (64, 1), (31, 30)])
def test_square_tile_is_a_padded_picture_resized(size, side):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    longest = max(size)
    padded = Image.new("RGB", (longest, longest), image.PADDING_COLOUR)
    padded.paste(noise, ((longest - size[0]) // 2, (longest - size[1]) // 2))
    np.testing.assert_array_equal(square_tile(noise, side), pixels(resize(padded, (side, side))))


@pytest.mark.parametrize("name", ["tall", "wide"])
def test_resize_does_not_depend_on_the_version_of_pillow(name):
    """Two one-way passes; the vertical one first if it removes more than twice as many pixels."""
    size, target = {"tall": ((40, 200), (30, 50)), "wide": ((200, 40), (50, 30))}[name]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    first = (size[0], target[1]) if name == "tall" else (target[0], size[1])
    expected = noise.resize(first, Image.Resampling.BICUBIC).resize(target, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels(resize(noise, target)), pixels(expected))
