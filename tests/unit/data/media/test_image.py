from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image
from skimage import data as skimage_data

from longvita.data.errors import MediaError, Reason
from longvita.data.media import image
from longvita.data.media.image import (
    IMAGE_MEAN,
    choose_grid,
    cut_tiles,
    normalise,
    open_picture,
    probe_picture,
    resize,
    square_tile,
    tile_image,
    to_upright_rgb,
)
from longvita.data.media.item import MediaSettings, PictureFacts, PictureItem, decode_tiles
from tests.unit.data.material import cut_file, picture


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


class TestModes:
    def test_transparency_goes_on_white(self):
        half = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
        half.putpixel((1, 0), (10, 20, 30, 255))
        assert pixels(to_upright_rgb(half)).tolist() == [[[255, 255, 255], [10, 20, 30]]]

    def test_grey_with_alpha(self):
        assert pixels(to_upright_rgb(Image.new("LA", (1, 1), (40, 255)))).tolist() == [[[40, 40, 40]]]

    def test_palette_keeps_its_colours(self):
        colours = picture().quantize(16)
        np.testing.assert_array_equal(pixels(to_upright_rgb(colours)), pixels(colours.convert("RGB")))

    def test_sixteen_bits_keep_their_upper_byte(self, tmp_path):
        values = np.asarray([[0, 255, 256, 65535]], np.uint16)
        Image.fromarray(values).save(tmp_path / "deep.png")
        assert pixels(open_picture(tmp_path / "deep.png"))[0, :, 0].tolist() == [0, 0, 1, 255]

    def test_floats_are_scaled(self):
        ones = Image.fromarray(np.asarray([[0.0, 0.5, 1.0]], np.float32))
        assert pixels(to_upright_rgb(ones))[0, :, 0].tolist() == [0, 127, 255]

    def test_cmyk(self):
        assert to_upright_rgb(picture().convert("CMYK")).mode == "RGB"

    def test_an_animation_gives_its_first_picture(self, tmp_path):
        first, second = Image.new("RGB", (8, 8), (200, 0, 0)), Image.new("RGB", (8, 8), (0, 200, 0))
        first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
        assert pixels(open_picture(tmp_path / "moving.gif"))[4, 4].argmax() == 0

    def test_exif_turns_the_picture_and_its_size(self, tmp_path):
        photograph = picture("coffee").resize((60, 40))
        exif = Image.Exif()
        exif[0x0112] = 6  # Turn by a quarter, clockwise.
        photograph.save(tmp_path / "turned.jpg", exif=exif, quality=95)
        assert probe_picture(tmp_path / "turned.jpg") == (40, 60)
        upright = open_picture(tmp_path / "turned.jpg")
        assert upright.size == (40, 60)
        expected = pixels(photograph.transpose(Image.Transpose.ROTATE_270)).astype(int)
        assert np.abs(pixels(upright) - expected).mean() < 8

    @pytest.mark.parametrize("name", ["multipage.tif", "no_time_for_that_tiny.gif", "logo.png"])
    def test_odd_files_of_scikit_image(self, name):
        path = next(iter(skimage_data.__path__)) + "/" + name
        assert open_picture(path).mode == "RGB"
        assert open_picture(path).size == probe_picture(path)


class TestDamage:
    def test_missing(self, tmp_path):
        for read in (open_picture, probe_picture):
            with pytest.raises(MediaError, match="none.png does not exist") as caught:
                read(tmp_path / "none.png")
            assert caught.value.reason == Reason.MISSING_FILE

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
    def test_cut_in_the_middle(self, tmp_path, suffix):
        picture().resize((200, 200)).save(tmp_path / f"whole.{suffix}")
        cut = cut_file(tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}")
        with pytest.raises(MediaError, match="cut") as caught:
            open_picture(cut)
        assert caught.value.reason == Reason.BROKEN_PICTURE

    @pytest.mark.parametrize("content", [b"", b"this is no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
    def test_no_picture(self, tmp_path, content):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(MediaError, match="bad.png cannot be opened"):
            probe_picture(tmp_path / "bad.png")

    def test_a_program_is_no_picture(self, tmp_path):
        """Pillow would make Ghostscript run it, whatever the file's name."""
        (tmp_path / "bad.jpg").write_text(
            "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n"
        )
        assert Image.open(tmp_path / "bad.jpg").format == "EPS"
        with pytest.raises(MediaError, match="bad.jpg cannot be opened"):
            probe_picture(tmp_path / "bad.jpg")

    def test_a_bomb_is_not_opened(self, tmp_path, monkeypatch):
        Image.new("L", (400, 300)).save(tmp_path / "bomb.png")
        monkeypatch.setattr(image, "MAX_PIXELS", 100_000)
        for read in (open_picture, probe_picture):
            with pytest.raises(MediaError, match="400 x 300 pixels are more than the 100000"):
                read(tmp_path / "bomb.png")

    def test_a_folder_or_pipe_is_no_picture(self, tmp_path):
        os.mkfifo(tmp_path / "pipe.png")
        for path in (tmp_path, tmp_path / "pipe.png"):
            for read in (open_picture, probe_picture):
                with pytest.raises(MediaError, match="is no regular file"):
                    read(path)


class TestReducedSize:
    """JPEG files larger than the tiles need, decoded at 1/2, 1/4 or 1/8 of their size."""

    @staticmethod
    def write(path, size, orientation=1, **options):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture("coffee").resize(size).save(path, exif=exif, quality=95, **options)
        return path

    @pytest.mark.parametrize(
        "min_size, expected",
        [((400, 240), (400, 240)), ((201, 120), (400, 240)), ((200, 120), (200, 120)), ((100, 61), (200, 120))]
        + [((100, 60), (100, 60)), ((10, 10), (50, 30)), ((1000, 10), (400, 240))],
    )
    def test_the_smallest_size_that_is_enough_in_both_directions(self, tmp_path, min_size, expected):
        path = self.write(tmp_path / "a.jpg", (400, 240))
        assert open_picture(path, min_size=min_size).size == expected
        assert open_picture(path).size == (400, 240)

    @pytest.mark.parametrize("orientation", [1, 3, 6, 8])
    def test_upright(self, tmp_path, orientation):
        size = (400, 240) if orientation < 5 else (240, 400)
        path = self.write(tmp_path / "a.jpg", (400, 240), orientation)
        reduced = open_picture(path, size=size, min_size=(size[0] // 2, size[1] // 2))
        assert reduced.size == (size[0] // 2, size[1] // 2)
        whole = open_picture(path).resize(reduced.size, Image.Resampling.BOX)
        assert np.abs(pixels(reduced).astype(int) - pixels(whole)).mean() < 3

    def test_other_formats_are_read_at_full_size(self, tmp_path):
        picture("coffee").resize((400, 240)).save(tmp_path / "a.png")
        assert open_picture(tmp_path / "a.png", min_size=(10, 10)).size == (400, 240)

    def test_the_size_of_the_file_is_compared(self, tmp_path):
        """With the index, also if the picture is reduced."""
        path = self.write(tmp_path / "a.jpg", (400, 240))
        with pytest.raises(MediaError, match=r"a.jpg: it is 400 x 240 pixels and was 200 x 120 when it was indexed"):
            open_picture(path, size=(200, 120), min_size=(10, 10))

    def test_tiles(self, tmp_path):
        path = self.write(tmp_path / "a.jpg", (900, 600))
        items = [PictureItem(path, PictureFacts(900, 600))]
        plain = decode_tiles(items, MediaSettings(image_size=28), 1, range(7))
        assert MediaSettings().reduced_jpeg is False
        reduced = decode_tiles(items, MediaSettings(image_size=28, reduced_jpeg=True), 1, range(7))
        difference = np.abs(reduced.astype(int) - plain)
        assert 0 < difference.mean() < 4
        # With a grid that needs every pixel nothing differs.
        large = [MediaSettings(image_size=200, reduced_jpeg=reduced) for reduced in (False, True)]
        first, second = (decode_tiles(items, settings, 1, range(7)) for settings in large)
        np.testing.assert_array_equal(first, second)
