from __future__ import annotations

import numpy as np
from PIL import Image

from longvita.data.media.pictures.picture_file import open_picture
from longvita.data.media.pictures.upright import to_upright_rgb
from tests.unit.data.material import picture


def pixels(value: Image.Image) -> np.ndarray:
    return np.asarray(value)


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
