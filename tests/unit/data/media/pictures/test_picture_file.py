from __future__ import annotations

import os
import sys

import numpy as np
import pillow_heif
import pytest
from PIL import Image
from skimage import data as skimage_data

from longvita.data.errors import MediaError, Reason
from longvita.data.media.item import MediaSettings, PictureFacts, PictureItem, decode_tiles
from longvita.data.media.pictures import picture_file
from longvita.data.media.pictures.picture_file import open_picture, probe_picture
from tests.unit.data.material import cut_file, picture


def pixels(value: Image.Image) -> np.ndarray:
    return np.asarray(value)


@pytest.mark.parametrize("name", ["multipage.tif", "no_time_for_that_tiny.gif", "logo.png"])
def test_odd_files_of_scikit_image(name):
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
        monkeypatch.setattr(picture_file, "MAX_PIXELS", 100_000)
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


class TestLargePictures:
    """More pixels than are decoded: a JPEG or JPEG 2000 file is read at a part of its sides."""

    @staticmethod
    def write(path, size, **options):
        Image.radial_gradient("L").convert("RGB").resize(size).save(path, **options)
        return path

    @pytest.fixture(autouse=True)
    def limit(self, monkeypatch):
        monkeypatch.setattr(picture_file, "MAX_PIXELS", 4000)

    @pytest.mark.parametrize("form", ["jpg", "jp2", "j2k"])
    @pytest.mark.parametrize(
        "size, expected",
        [((80, 50), (80, 50)), ((81, 50), (41, 25)), ((201, 77), (101, 39)), ((205, 209), (52, 53))]
        + [((403, 401), (51, 51)), ((505, 487), (64, 61))],
    )
    def test_the_smallest_part_that_is_enough(self, tmp_path, form, size, expected):
        path = self.write(tmp_path / f"a.{form}", size)
        assert probe_picture(path) == size
        reduced = open_picture(path, size)
        assert reduced.size == expected
        theirs = Image.open(path).convert("RGB").resize(expected, Image.Resampling.BOX)
        assert np.abs(pixels(reduced).astype(int) - pixels(theirs)).mean() < 6

    @pytest.mark.parametrize("orientation", [3, 6])
    def test_turned(self, tmp_path, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = self.write(tmp_path / "a.jpg", (120, 80), exif=exif)
        expected = (60, 40) if orientation < 5 else (40, 60)
        assert open_picture(path, probe_picture(path)).size == expected

    def test_less_is_read_if_less_is_enough(self, tmp_path):
        path = self.write(tmp_path / "a.jpg", (120, 80))
        assert open_picture(path, min_size=(30, 20)).size == (30, 20)
        assert open_picture(path, min_size=(120, 80)).size == (60, 40)

    def test_the_grid_is_that_of_the_file(self, tmp_path):
        """Of 205 x 68 pixels, also if 103 x 34 are read."""
        path = self.write(tmp_path / "a.jpg", (205, 68))
        facts, settings = PictureFacts(*probe_picture(path)), MediaSettings(image_size=28)
        assert open_picture(path).size == (103, 34)
        tiles = decode_tiles([PictureItem(path, facts)], settings, 1, range(facts.grid(settings).num_tiles))
        assert (facts.width, facts.height, len(tiles)) == (205, 68, 13)

    @pytest.mark.parametrize(
        "name, options",
        [("a.png", {}), ("a.webp", {}), ("a.tif", {}), ("a.bmp", {}), ("a.gif", {}), ("a.avif", {})]
        + [("a.jpg", {"progressive": True}), ("a.jp2", {"num_resolutions": 1})],
    )
    def test_other_files_are_refused(self, tmp_path, name, options):
        path = self.write(tmp_path / name, (120, 80), **options)
        for read in (open_picture, probe_picture):
            with pytest.raises(
                MediaError, match=f"{name}: 120 x 80 pixels are more than the 4000.*fix: make it smaller"
            ):
                read(path)

    def test_more_than_an_eighth_is_refused(self, tmp_path):
        path = self.write(tmp_path / "a.jpg", (600, 500))
        with pytest.raises(MediaError, match="600 x 500 pixels"):
            probe_picture(path)


def test_a_large_jpeg_in_bounded_memory(tmp_path):
    """Twice Pillow's limit, read at a half of its sides."""
    Image.new("L", (20_000, 18_000), 90).save(tmp_path / "large.jpg", quality=20)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "large.jpg")
    assert probe_picture(tmp_path / "large.jpg") == (20_000, 18_000)
    assert 2 * picture_file.MAX_PIXELS < 20_000 * 18_000


class TestHeic:
    def test_without_its_package(self, tmp_path, monkeypatch):
        pillow_heif.from_pillow(picture().resize((64, 48))).save(tmp_path / "a.heic", format="HEIF")
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        for read in (open_picture, probe_picture):
            with pytest.raises(MediaError, match="a.heic: it is HEIC.*fix: pip install pillow-heif") as caught:
                read(tmp_path / "a.heic")
            assert caught.value.reason == Reason.BROKEN_PICTURE

    def test_pixels(self, tmp_path):
        photograph = picture().resize((64, 48))
        pillow_heif.from_pillow(photograph).save(tmp_path / "a.heic", format="HEIF", quality=95, chroma=444)
        read = open_picture(tmp_path / "a.heic", probe_picture(tmp_path / "a.heic"))
        assert np.abs(pixels(read).astype(int) - pixels(photograph)).mean() < 4

    def test_truncated(self, tmp_path):
        pillow_heif.from_pillow(picture().resize((200, 200))).save(tmp_path / "a.heic", format="HEIF")
        cut = cut_file(tmp_path / "a.heic", tmp_path / "cut.heic")
        with pytest.raises(MediaError, match="cut.heic"):
            open_picture(cut)
