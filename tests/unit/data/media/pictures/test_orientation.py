"""Every format is turned upright by its own rule, in the header as in the pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from longvita.data.media.item import MediaSettings, PictureFacts, PictureItem, decode_tiles, probe_media
from longvita.data.media.pictures.picture_file import open_picture, probe_picture
from longvita.data.media.pictures.upright import to_upright_rgb, upright_size
from tests.unit.data.media.pictures.material import SIZE, WRITERS, exif, inline, stored, upright, write, xmp


def assert_upright(picture: Image.Image) -> None:
    assert picture.size == SIZE
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(upright())).mean() < 3


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("source", ["a file", "bytes"])
def test_all_orientations(tmp_path, form, source):
    for orientation in range(1, 9):
        content = WRITERS[form](stored(orientation), orientation)
        (tmp_path / "a.bin").write_bytes(content)
        path = tmp_path / "a.bin" if source == "a file" else inline(content)
        assert probe_picture(path) == SIZE
        assert_upright(open_picture(path, SIZE))


@pytest.mark.parametrize("form", [form for form in WRITERS if form != "HEIC"])
def test_pictures_that_a_user_opened(form):
    for orientation in range(1, 9):
        if "raw profile" in form and orientation > 1:
            continue  # Pillow states it as text, which is read from files alone.
        content = WRITERS[form](stored(orientation), orientation)
        assert upright_size(Image.open(io.BytesIO(content))) == SIZE
        assert_upright(to_upright_rgb(Image.open(io.BytesIO(content))))
        assert_upright(to_upright_rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(content)))))


@pytest.mark.parametrize("form", ["JPEG2000", "GIF"])
def test_formats_without_an_orientation(form):
    content = write(stored(6), form)
    assert probe_picture(inline(content)) == stored(6).size
    assert np.abs(np.asarray(open_picture(inline(content))).astype(int) - np.asarray(stored(6))).mean() < 3


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_exif_comes_before_xmp(form):
    content = write(stored(6), form, exif=exif(6), xmp=xmp(3), quality=95)
    assert_upright(open_picture(inline(content)))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_other_numbers_are_no_orientation(value):
    content = write(upright(), "JPEG", exif=exif(value), xmp=xmp(6), quality=95)
    assert_upright(open_picture(inline(content)))


def test_webp_without_the_flag_of_exif_has_none():
    content = bytearray(write(upright(), "WEBP", exif=exif(6), lossless=True))
    content[20] &= ~0x08
    assert_upright(open_picture(inline(bytes(content))))


def test_tiles_of_a_turned_tiff(tmp_path):
    """A grid of two rows for a picture stored with two columns, as for the same picture stored upright."""
    tall = Image.fromarray(np.asarray(upright().resize((56, 112))))
    tall.save(tmp_path / "upright.tif")
    tall.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.tif", exif=exif(6))
    settings, tiles = MediaSettings(image_size=28), []
    for name in ("upright.tif", "turned.tif"):
        facts = probe_media([tmp_path / name], [], 1.0).pictures[0]
        assert facts == PictureFacts(56, 112)
        item = PictureItem(tmp_path / name, facts)
        tiles.append(decode_tiles([item], settings, 1, range(item.num_tiles(settings, 1))))
    np.testing.assert_array_equal(*tiles)
