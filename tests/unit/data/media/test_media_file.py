"""Parts of files, inline bytes and addresses are read as files are."""

from __future__ import annotations

import io
import os
import pickle

import numpy as np
import pytest

from longvita.data.document import probe_sample
from longvita.data.errors import MediaError, Reason
from longvita.data.media import video
from longvita.data.media.item import MediaFacts, MediaSettings, decode_tiles, order_media, probe_media
from longvita.data.media.media_file import FilePart, InlineMedia, files_in, leads_outside, opened, read_bytes, resolve
from longvita.data.media.pictures.picture_file import open_picture, probe_picture
from longvita.data.media.video import list_frames, probe_video, read_frames
from longvita.data.sample import Sample, Turn, hash_media_names
from longvita.inference.media_key import MediaKey

KINDS = ["part", "inline", "address", "whole file"]


@pytest.fixture(params=KINDS)
def stored(request, folder, memory):
    """A function that returns a file of media/ as a source of one kind."""

    def store(name):
        content = (folder / "media" / name).read_bytes()
        if request.param == "part":
            container = folder / f"{name}.bin"
            container.write_bytes(b"before" * 99 + content + b"behind" * 99)
            return FilePart(str(container), 6 * 99, len(content), name)
        if request.param == "address":
            memory.pipe(f"/{name}", content)
            return resolve(name, "memory://")
        return InlineMedia(content, name) if request.param == "inline" else FilePart(str(folder / "media" / name))

    return store


def test_pictures(folder, stored):
    for name in ("one.png", "wide.jpg"):
        path = folder / "media" / name
        assert probe_picture(stored(name)) == probe_picture(path)
        np.testing.assert_array_equal(np.asarray(open_picture(stored(name))), np.asarray(open_picture(path)))


def test_videos(folder, stored):
    path, source = folder / "media" / "clip.mp4", stored("clip.mp4")
    assert probe_video(source) == probe_video(path)
    for one, other in zip(read_frames(source, [0, 7, 20]), read_frames(path, [0, 7, 20]), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_decord_takes_each_kind(folder, stored):
    frames = [np.asarray(frame) for frame in video._read_with_decord(stored("clip.mp4"), [3, 9], lambda: None)]
    np.testing.assert_array_equal(frames, [np.asarray(f) for f in read_frames(folder / "media/clip.mp4", [3, 9])])


def test_tiles(folder, stored):
    settings = MediaSettings(image_size=28, max_num_tiles=4, max_num_frames=3)

    def tiles(give):
        pictures, videos = [give("wide.jpg")], [give("clip.mp4")]
        facts = probe_media(pictures, videos, settings.max_fps)
        return decode_tiles(order_media([True, False], pictures, videos, facts), settings, 3, range(7))

    np.testing.assert_array_equal(tiles(stored), tiles(lambda name: folder / "media" / name))


@pytest.mark.parametrize("name, reason", [("text.png", Reason.BROKEN_PICTURE), ("cut.jpg", Reason.BROKEN_PICTURE)])
def test_broken_pictures_are_named(stored, name, reason):
    with pytest.raises(MediaError, match=name) as caught:
        open_picture(stored(name))
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["zero.mp4", "text.mp4", "audio.mp4"])
def test_broken_videos_are_named(stored, name):
    with pytest.raises(MediaError, match=name) as caught:
        probe_video(stored(name))
    assert caught.value.reason == Reason.BROKEN_VIDEO


@pytest.mark.parametrize("name", ["a.png", "a.mp4"])
@pytest.mark.parametrize(
    "content, says",
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "it is a Git LFS pointer .*fix: git lfs",
        ),
        (b"<!DOCTYPE html>\n<html></html>\n" * 99, "it is an HTML page, such as a login or error page, .*fix: fetch"),
        (b"this is neither\n" * 99, r"\w+Error: "),
    ],
)
def test_what_is_in_place_of_a_file_is_named(own_media, stored, name, content, says):
    """As in a clone without Git LFS, or after a download without a login."""
    (own_media() / name).write_bytes(content)
    with pytest.raises(MediaError, match=f"{name}.* cannot be opened: {says}"):
        (open_picture if name == "a.png" else probe_video)(stored(name))


@pytest.mark.parametrize("source", [FilePart("/nowhere/a.tar", 5, 5, "b.png"), FilePart("memory://none.png")])
def test_a_container_that_is_missing(memory, source):
    for read in (open_picture, probe_picture, probe_video):
        with pytest.raises(MediaError, match="does not exist") as caught:
            read(source)
        assert caught.value.reason == Reason.MISSING_FILE


def test_a_folder_of_frames_at_an_address(folder, memory):
    for frame in (folder / "media" / "frames").iterdir():
        memory.pipe(f"/clips/one/{frame.name}", frame.read_bytes())
    memory.pipe("/clips/one/deeper/frame0.png", b"")
    source, path = resolve("clips/one", "memory://"), folder / "media" / "frames"
    assert probe_video(source) == probe_video(path)
    assert [name for name, _ in files_in(source) if name == "frame10.png"]
    assert [str(frame).rpartition("/")[2] for frame in list_frames(source)] == [
        str(frame).rpartition("/")[2] for frame in list_frames(path)
    ]
    (one,), (other,) = read_frames(source, [9]), read_frames(path, [9])
    np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_a_part_reads_as_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    part = FilePart(str(tmp_path / "a"), 2, 5, "x")
    with opened(part) as file:
        assert file.read() == b"23456"
        assert (file.seek(-2, os.SEEK_END), file.read(10), file.tell()) == (3, b"56", 5)
        assert (file.seek(1), file.read(2), file.seek(1, os.SEEK_CUR), file.read()) == (1, b"34", 4, b"6")
        inner = file.raw._file
    assert inner.closed
    assert read_bytes(FilePart(str(tmp_path / "a"), 7)) == b"789"
    assert read_bytes(tmp_path / "a") == b"0123456789"
    assert isinstance(pickle.loads(pickle.dumps(part)), FilePart)


def test_names_of_media_differ():
    def names(*media):
        return hash_media_names(Sample((Turn("user", "x"),), tuple(media)))

    media = [
        "a",
        "b",
        FilePart("a"),
        FilePart("a", 1),
        FilePart("a", 1, 9, "n"),
        InlineMedia(b"1", "a"),
        InlineMedia(b"2", "a"),
        InlineMedia(b"1", "b"),
    ]
    assert len({names(ref) for ref in media}) == len(media)
    assert names(InlineMedia(b"1", "a")) == names(InlineMedia(b"1", "a"))


def test_media_keys_differ_by_content(stored):
    one = stored("one.png")
    content = read_bytes(one)
    assert MediaKey(one) == MediaKey(InlineMedia(content, "other name"))
    assert MediaKey(one) != MediaKey(InlineMedia(content + b"x", "one.png"))


INSIDE = ["a.png", "b/../a.png", "b/a..png", "/data/media/a.png", "/data/media/../media/a.png", "..a/b"]
OUTSIDE = ["../a.png", "b/../../a.png", "/etc/passwd", "/data/media2/a.png", "/data/media/../a.png", "s3://b/a.png"]


@pytest.mark.parametrize("path", INSIDE)
def test_paths_below_the_media_root(path):
    assert not leads_outside(path, "/data/media")
    assert not leads_outside(path, "/")
    assert str(resolve(path, "/data/media")).startswith("/data/media")


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_that_lead_outside(path):
    with pytest.raises(
        MediaError, match="outside the media root /data/media; .*fix: .*set (data.)?media_root"
    ) as caught:
        resolve(path, "/data/media")
    assert caught.value.reason == Reason.OUTSIDE_MEDIA_ROOT
    assert leads_outside(path, "/") == path.startswith("s3")


@pytest.mark.parametrize(
    "path", ["../a", "b/../../a", "s3://other/a", "s3://bucket/media2/a", "file:///etc/passwd", "/etc/passwd"]
)
def test_addresses_that_lead_outside(path):
    assert leads_outside(path, "s3://bucket/media")
    assert not leads_outside("b/a", "s3://bucket/media")
    assert not leads_outside("s3://bucket/media/a", "s3://bucket/media/")


def test_a_leading_slash_too_many(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"")
    with pytest.raises(MediaError, match=r"fix: remove its leading slash, since a/1.png is in the media root$"):
        resolve("/a/1.png", tmp_path)
    with pytest.raises(MediaError, match=r"fix: set data.media_root"):
        resolve("/a/2.png", tmp_path)


def test_an_address_is_refused_with_the_fix():
    message = "https://example.com/d/a.jpg is an address outside the media root /data; fix: download it, or set "
    with pytest.raises(MediaError) as caught:
        resolve("https://example.com/d/a.jpg", "/data")
    assert caught.value.reason == Reason.OUTSIDE_MEDIA_ROOT
    assert caught.value.detail == message + "media_root to that address, such as https://example.com/"
    assert str(resolve("https://example.com/d/a.jpg", "https://example.com/")) == "https://example.com/d/a.jpg"
    with pytest.raises(MediaError) as caught:
        resolve("https://example.com/" + "x" * 9999, "/data")
    assert len(caught.value.detail) < 400


def test_a_relative_media_root(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert not leads_outside(str(tmp_path / "a"), ".")
    assert leads_outside("../a", ".")
    assert leads_outside("../../a", "media")


def test_links_are_followed_but_do_not_count(folder, tmp_path):
    assert (folder / "media").is_symlink()
    sample = Sample((Turn("user", "<image>"),), ("media/one.png",))
    assert probe_sample(sample, folder, 1.0) == MediaFacts(probe_media([folder / "media/one.png"], [], 1.0).pictures)


def test_bytes_are_not_shown():
    assert repr(InlineMedia(io.BytesIO(b"x" * 999).read(), "a")) == "InlineMedia(name='a')"
