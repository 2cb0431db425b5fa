"""A record whose picture or video is under a key that is not read is refused, whether or not its text has marks."""

from __future__ import annotations

import pytest

from longvita.data.errors import Reason, SampleError
from longvita.data.formats import read_samples
from longvita.data.formats.record import NO_OPTIONS, FormatOptions, record_sample
from tests.unit.data.format_material import llava, png, write_parquet

BASE64 = "iVBORw0KGgo" + "A" * 41
TEXTS = (llava("x"), {"question": "x", "answer": "y"})


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "key, value, noun",
    [
        ("imgae", "a/1.jpg", "images"),
        ("image_path", "a/1.JPG", "images"),
        ("image_url", "https://x.org/picture?size=3", "images"),
        ("Photos", ["1.png", "2.png"], "images"),
        ("file_name", "1.webp", "images"),
        ("media", "1.mp4", "videos"),
        ("vidoe", ["1.mp4"], "videos"),
        ("film_frames", ["1.png"], "videos"),
        ("data", {"bytes": None, "path": "1.png"}, "images"),
        ("anything", [{"bytes": b"..."}], "images"),
        ("anything", BASE64, "images"),
        ("anything", "data:image/png;base64,AAAA", "images"),
    ],
)
def test_unread_media_are_refused(text, key, value, noun):
    with pytest.raises(SampleError) as caught:
        record_sample({**text, key: value}, NO_OPTIONS)
    assert caught.value.reason == Reason.MARK_COUNT
    assert f"{key!r} holds {noun} and is not read; fix: columns: {{{noun}: {key}}}" in caught.value.detail
    sample = record_sample({**text, key: value}, FormatOptions(((noun, key),)))
    assert sample.images or sample.videos


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize(
    "more",
    [
        {"id": "1.jpg", "source": "page.png", "url": "https://x.org/1.jpg", "origin": "1.mp4"},
        {"meta": {"path": "1.jpg", "url": "https://x.org/1.jpg"}},
        {"image_id": "17", "has_image": False, "image_size": [3, 4], "video_title": "A film"},
        {"path": "src/a.py", "file_name": "b.txt", "message_id": "1.jpg", "file": "https://x.org/a"},
        {"image": None, "images": [], "img": ""},
    ],
)
def test_keys_of_records_of_text_alone(text, more):
    assert record_sample({**text, **more}, NO_OPTIONS).images == ()


def test_records_with_other_media_are_read():
    record = {**llava("x"), "image": "1.png", "image_url": "https://x.org/1.png", "thumbnail": b"..."}
    assert record_sample(record, NO_OPTIONS).images == ("1.png",)
    parts = [{"type": "image", "image": "1.png"}, {"type": "text", "text": "x"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "y"}]
    assert record_sample({"messages": turns, "image_path": "2.png"}, NO_OPTIONS).images == ("1.png",)


def test_a_caption_names_the_unread_key():
    with pytest.raises(SampleError, match=r"fix: columns: \{images: picture_url\}"):
        record_sample({"caption": "it", "picture_url": "1.png"}, NO_OPTIONS)


def test_media_of_a_turn():
    turns = [{"from": "human", "value": "x", "image": "1.png"}, {"from": "gpt", "value": "y"}]
    with pytest.raises(SampleError, match=r"'turn.image' holds images and is not read; fix: list it in the record's"):
        record_sample({"conversations": turns}, NO_OPTIONS)


def test_bytes_of_a_table(tmp_path):
    rows = [{**llava("x"), "pixels": {"bytes": png("red"), "path": None}}] * 2
    path = str(write_parquet(tmp_path / "a.parquet", rows))
    found = [sample for _, sample in read_samples(path, None, NO_OPTIONS)]
    assert [error.reason for error in found] == [Reason.MARK_COUNT] * 2
    assert "columns: {images: pixels}" in found[0].detail
    assert all(sample.images for _, sample in read_samples(path, None, FormatOptions((("images", "pixels"),))))
