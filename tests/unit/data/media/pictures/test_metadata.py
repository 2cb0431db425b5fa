"""Damaged or large metadata never cost the pixels of a picture."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from longvita.data.errors import MediaError
from longvita.data.media.pictures import jpeg, png, tiff
from longvita.data.media.pictures.exif import read_directory
from longvita.data.media.pictures.picture_file import open_picture, probe_picture
from longvita.data.media.pictures.pieces import MAX_METADATA_BYTES, PixelPieces, SplicedFile
from tests.unit.data.material import picture
from tests.unit.data.media.pictures.material import exif, inline, write, write_heic, xmp

MAKER = b"Maker of the camera"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def photograph() -> Image.Image:
    return picture().resize((48, 40))


def assert_pixels(content: bytes, whole: bytes) -> None:
    """Header and pixels are those of the undamaged file; its orientation may be lost."""
    expected, found = np.asarray(open_picture(inline(whole))), open_picture(inline(content))
    assert probe_picture(inline(content)) == found.size
    turns = [np.asarray(found), *(np.asarray(found.transpose(turn)) for turn in Image.Transpose)]
    assert any(np.array_equal(turn, expected) for turn in turns)


def overwrite(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def segment(marker: int, content: bytes) -> bytes:
    """A segment of a JPEG file."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "HEIC", "MPO"])
@pytest.mark.parametrize("junk", [b"\0" * 40, b"\xff" * 40, bytes(range(40)), b"II*\0\xff\xff\xff\x7f", b"MM\0*"])
def test_junk_in_exif(form, junk):
    block = exif(1).tobytes()
    writer = write_heic if form == "HEIC" else lambda one, **options: write(one, form, **options)
    whole = writer(photograph(), exif=block)
    start = whole.index(MAKER) - 38  # The block's first byte.
    assert_pixels(overwrite(whole, start, junk), whole)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("block", [b"", b"\0", b"Exif\0\0", b"Exif\0\0" * 3 + b"\0" * 90, b"II*\0\x08\0\0\0\xff\xff"])
def test_exif_that_is_none(form, block):
    whole = write(photograph(), form, quality=90)
    assert_pixels(write(photograph(), form, quality=90, exif=block), whole)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF", "TIFF"])
def test_junk_in_profile_and_xmp(form):
    extra = {"tiffinfo": {700: xmp(1)}} if form == "TIFF" else {"xmp": xmp(1)}
    whole = write(photograph(), form, icc_profile=PROFILE, **extra)
    start, packet = whole.index(PROFILE[:64]), whole.index(xmp(1)[:20])
    assert_pixels(overwrite(overwrite(whole, start, b"\xff" * 300), packet, b"\0\xff" * 20), whole)


class TestPng:
    HEAD = 33
    """Bytes of the signature and the first chunk."""

    @staticmethod
    def whole() -> bytes:
        return write(photograph(), "PNG")

    @pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"sRGB", b"pHYs", b"gAMA", b"cHRM"])
    @pytest.mark.parametrize("content", [b"", b"a\0\1\0", b"\0\xff", b"a" * 300])
    @pytest.mark.parametrize("where", ["before the pixels", "after them"])
    def test_a_chunk_of_junk(self, kind, content, where):
        whole = self.whole()
        place = self.HEAD if where == "before the pixels" else len(whole) - 12
        assert_pixels(whole[:place] + chunk(kind, content) + whole[place:], whole)
        wrong_sum = chunk(kind, content)[:-1] + b"\0"
        assert_pixels(whole[:place] + wrong_sum + whole[place:], whole)

    @pytest.mark.parametrize("kind", [b"acTL", b"fcTL"])
    def test_chunks_of_an_animation(self, kind):
        whole = self.whole()
        assert_pixels(whole[: self.HEAD] + chunk(kind, b"\0\0\0\2") + whole[self.HEAD :], whole)

    @pytest.mark.parametrize("where", ["before the pixels", "after them"])
    def test_large_text_and_profile(self, where):
        whole = self.whole()
        bomb = zlib.compress(b"\0" * (70 << 20), 1)
        chunks = chunk(b"zTXt", b"a\0\0" + bomb) + chunk(b"iCCP", b"a\0\0" + bomb)
        place = self.HEAD if where == "before the pixels" else len(whole) - 12
        content = whole[:place] + chunks + whole[place:]
        with pytest.raises(ValueError, match="MAX_TEXT"):
            Image.open(io.BytesIO(content)).load()
        assert_pixels(content, whole)

    @pytest.mark.parametrize("keyword", [b"XML:com.adobe.xmp", b"Raw profile type exif"])
    def test_memory_for_text_is_bounded(self, keyword):
        """A text whose beginning is read is never decompressed as a whole."""
        whole, bomb = self.whole(), zlib.compress(xmp(6) + b" " * (64 << 20), 1)
        text = chunk(b"iTXt", keyword + b"\0\1\0\0\0" + bomb)
        content = whole[: self.HEAD] + text + whole[self.HEAD :]
        tracemalloc.start()
        size = probe_picture(inline(content))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert size == ((40, 48) if keyword.startswith(b"XML") else (48, 40))
        assert peak < 16 << 20

    def test_a_file_that_ends_in_its_metadata(self):
        whole = self.whole()
        assert_pixels(whole[:-12] + chunk(b"tEXt", b"a\0" + b"b" * 99)[:-40], whole)

    def test_a_file_that_ends_in_its_pixels(self):
        with pytest.raises(MediaError, match="truncated"):
            open_picture(inline(self.whole()[:-200]))

    def test_damaged_pixels(self):
        whole = self.whole()
        place = whole.index(b"IDAT") + 100
        with pytest.raises(MediaError, match="a picture"):
            open_picture(inline(overwrite(whole, place, b"\0" * 40)))

    def test_transparency_is_kept(self):
        clear = Image.new("P", (8, 8), 1)
        clear.putpalette([0, 0, 0, 9, 9, 9])
        content = write(clear, "PNG", transparency=1, pnginfo=_text("a", "b"))
        assert np.asarray(open_picture(inline(content))).min() == 255


def _text(keyword: str, text: str) -> PngInfo:
    texts = PngInfo()
    texts.add_text(keyword, text)
    return texts


class TestJpeg:
    @pytest.mark.parametrize(
        "marker, content",
        [
            (0xE0, b"JFIF\0"),
            (0xE0, b"JFIF"),
            (0xE1, b"Exif\0\0"),
            (0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
            (0xE2, b"ICC_PROFILE\0"),
            (0xE2, b"ICC_PROFILE\0\1\2"),
            (0xE2, b"MPF\0"),
            (0xE2, b"MPF\0MM\0*\0\0\0\x08\0\2\xb0\1\0\4\0\0\0\1\0\0\0\x09\xb0\2\0\7\0\0\0\x04\0\0\0\0"),
            (0xED, b"Photoshop 3.0\0" + b"8BIM"),
            (0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed"),
            (0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\0\4\1"),
            (0xEE, b"Adobe"),
            (0xFE, b""),
        ],
    )
    def test_a_segment_of_junk(self, marker, content):
        whole = write(photograph(), "JPEG")
        assert_pixels(whole[:2] + segment(marker, content) + whole[2:], whole)
        start_of_frame = whole.index(b"\xff\xc0")
        assert_pixels(whole[:start_of_frame] + segment(marker, content) + whole[start_of_frame:], whole)

    @pytest.mark.parametrize("damage", [b"\0" * 30, b"\xff" * 30, bytes(range(1, 31))])
    def test_damaged_index_of_pictures(self, damage):
        whole = write(photograph(), "MPO", save_all=True, append_images=[photograph().rotate(90)])
        for place in range(0, 60, 15):
            assert_pixels(overwrite(whole, whole.index(b"MPF\0") + 4 + place, damage), whole)

    @pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
    def test_colours_are_kept(self, mode):
        """They depend on segments that look like metadata."""
        content = write(photograph().convert(mode), "JPEG", quality=95, exif=exif(1), comment="a")
        theirs = Image.open(io.BytesIO(content)).convert("RGB")
        np.testing.assert_array_equal(np.asarray(open_picture(inline(content))), np.asarray(theirs))

    def test_colours_that_are_not_transformed(self):
        content = write(photograph(), "JPEG", keep_rgb=True, exif=exif(1))
        theirs = Image.open(io.BytesIO(content))
        np.testing.assert_array_equal(np.asarray(open_picture(inline(content))), np.asarray(theirs))


class TestWebp:
    def test_a_file_that_ends_in_its_metadata(self):
        whole = write(photograph(), "WEBP", exif=exif(1), lossless=True)
        assert_pixels(whole[:-20], whole)

    def test_a_file_that_ends_in_its_pixels(self):
        with pytest.raises(MediaError, match="a picture"):
            open_picture(inline(write(photograph(), "WEBP", lossless=True)[:-200]))

    @pytest.mark.parametrize("mode", ["RGB", "RGBA"])
    def test_animations_and_transparency_are_kept(self, mode):
        frames = [photograph().convert(mode), photograph().rotate(90).convert(mode)]
        frames[0].putpixel((0, 0), (1, 2, 3, 0)[: len(mode)])
        content = write(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, xmp=xmp(1))
        white = Image.new("RGBA", frames[0].size, "white")
        expected = Image.alpha_composite(white, frames[0].convert("RGBA")).convert("RGB")
        np.testing.assert_array_equal(np.asarray(open_picture(inline(content))), np.asarray(expected))


class TestGif:
    @pytest.mark.parametrize("extension", [b"!\xf9\1\1\0", b"!\xfe\0", b"!\xff\3abc\0", b"!\1\0", b"!\xf9\0"])
    def test_an_extension_of_junk(self, extension):
        whole = write(photograph().quantize(16), "GIF")
        place = 13 + (3 << (whole[10] & 7) + 1)
        assert_pixels(whole[:place] + extension + whole[place:], whole)

    def test_transparency_is_kept(self):
        clear = Image.new("P", (8, 8), 1)
        clear.putpalette([0, 0, 0, 9, 9, 9])
        content = write(clear, "GIF", transparency=1, comment=b"c" * 900)
        assert np.asarray(open_picture(inline(content))).min() == 255


class TestTiff:
    @staticmethod
    def whole(compression: str | None = None) -> bytes:
        tags = {269: "d" * 40, 270: "e" * 40, 271: "f" * 40, 305: "s" * 40, 700: xmp(1), 282: 72.0, 296: 3}
        return write(photograph(), "TIFF", exif=exif(1), icc_profile=PROFILE, tiffinfo=tags, compression=compression)

    @pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
    def test_tags_of_junk(self, tmp_path, compression):
        """Also in a file, which libtiff reads itself."""
        whole, chance = self.whole(compression), random.Random(0)
        directory = read_directory(io.BytesIO(whole))
        metadata = [number for number, entry in enumerate(directory.entries) if entry.tag not in tiff.PIXEL_TAGS]
        assert len(metadata) >= 8
        for number in metadata:
            for junk in (b"\xff" * 10, b"\0" * 10, chance.randbytes(10)):
                content = overwrite(whole, directory.start + 2 + 12 * number + 2, junk)
                assert_pixels(content, whole)
                (tmp_path / "a.tif").write_bytes(content)
                np.testing.assert_array_equal(
                    np.asarray(open_picture(tmp_path / "a.tif")), np.asarray(open_picture(inline(content)))
                )

    def test_a_resolution_that_is_text(self):
        whole = self.whole()
        directory = read_directory(io.BytesIO(whole))
        (number,) = [number for number, entry in enumerate(directory.entries) if entry.tag == 282]
        content = overwrite(whole, directory.start + 2 + 12 * number + 2, struct.pack("<HI4s", 2, 3, b"ab\0\0"))
        with pytest.raises(Image.UnidentifiedImageError):
            Image.open(io.BytesIO(content))
        assert_pixels(content, whole)

    def test_the_format_of_samples_is_not_lost_with_an_earlier_tag(self):
        """Pillow would read floats as whole numbers."""
        floats = Image.fromarray(np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30))
        whole = write(floats, "TIFF", tiffinfo={305: "s" * 40})
        directory = read_directory(io.BytesIO(whole))
        (number,) = [number for number, entry in enumerate(directory.entries) if entry.tag == 305]
        assert_pixels(overwrite(whole, directory.start + 2 + 12 * number + 8, b"\xff\xff\xff\x7f"), whole)


class TestJpeg2000:
    @pytest.mark.parametrize("kind", [b"uuid", b"xml ", b"res "])
    def test_a_box_of_junk(self, kind):
        whole = write(photograph(), "JPEG2000")
        place = whole.index(b"jp2c") - 4
        assert_pixels(whole[:place] + struct.pack(">I4s", 38, kind) + b"\xff" * 30 + whole[place:], whole)

    def test_a_damaged_resolution(self):
        whole = write(photograph(), "JPEG2000")
        start, end = whole.index(b"jp2h"), whole.index(b"jp2c") - 4
        header = whole[start + 4 : end] + struct.pack(">I4s", 12, b"res ") + b"\0\0\0\x63"
        content = whole[: start - 4] + struct.pack(">I4s", len(header) + 8, b"jp2h") + header + whole[end:]
        assert_pixels(content, whole)


def test_spliced_files_are_read_from_any_position():
    content = bytes(range(200))
    pieces = [range(3, 50), b"new", range(60, 60), b"", range(190, 200)]
    expected = content[3:50] + b"new" + content[190:200]
    for place in range(0, len(expected) + 3, 7):
        file = io.BufferedReader(SplicedFile(io.BytesIO(content), PixelPieces(iter(pieces))))
        file.seek(place)
        assert file.read(5) == expected[place : place + 5]
        assert file.read() == expected[place + 5 :]
    file = SplicedFile(io.BytesIO(content), PixelPieces(pieces))
    assert file.seek(-4, 2) == len(expected) - 4 and file.read() == expected[-4:]


class CountedFile(io.BytesIO):
    """Counts its reads."""

    reads = 0

    def read(self, size=-1):
        self.reads += 1
        return super().read(size)


@pytest.mark.parametrize("junk", [b"\0", b"\xff", b"\xff\0", b"ab", b"\xff\1", segment(0xE1, b"")], ids=bytes.hex)
def test_of_a_jpeg_without_a_scan_only_the_begin_is_searched(junk):
    file = CountedFile(jpeg.SIGNATURE[:2] + junk * (1 << 17))
    jpeg.split(file)
    assert file.reads <= 2 * jpeg.MAX_SEGMENTS


@pytest.mark.parametrize("count", [1, 3, 5000, 60_000])
@pytest.mark.parametrize("junk", [b"\0", b"a", b"\xff"])
def test_bytes_between_the_segments_of_a_jpeg(junk, count):
    whole = write(photograph(), "JPEG")
    assert_pixels(whole[:2] + segment(0xE1, b"http") + junk * count + whole[2:], whole)


def test_large_exif_is_read_up_to_a_bound():
    block = exif(6).tobytes() + b"\0" * MAX_METADATA_BYTES
    content = write(photograph(), "PNG", exif=block)
    assert probe_picture(inline(content)) == (40, 48)
    assert png.split(io.BytesIO(content)).orientation == 6
