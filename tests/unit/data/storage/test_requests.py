"""Requests to an object store for the samples of an archive, counted."""

from __future__ import annotations

import dataclasses
import json

import pytest

from longvita.data.document import DocumentReader, media_settings
from longvita.data.formats import make_format, webdataset
from longvita.data.formats.record import NO_OPTIONS
from longvita.data.media.media_file import read_bytes
from longvita.data.mix.catalog import build_catalog, make_template
from longvita.data.storage import remote
from tests.unit.data.format_material import llava, png, read_all, write_tar
from tests.unit.data.material import data_config
from tools.benchmark.counting_store import CountingStore

RED, BLUE = png("red"), png("blue")
FILM = bytes(3 << 20)
TEXT = json.dumps(llava("<image>and<image>?", "red and blue"))


def stored(tmp_path, members):
    return CountingStore.address(write_tar(tmp_path / "a.tar", members))


def places_of(path):
    places = [place for _, place, _ in read_all("webdataset", path)]
    CountingStore.reset()
    return places


def read(path, place, with_media=True):
    return make_format("webdataset", NO_OPTIONS).read(path, place, with_media)


def transferred():
    return CountingStore.bytes_read()


def requests_by(read_it):
    CountingStore.reset()
    read_it()
    return CountingStore.requests()


def test_a_document_of_neighbours_is_one_request(folder):
    """Header, text and both pictures, from the place in the index to the tiles."""
    members = [(f"{n}.{end}", content) for n in range(3) for end, content in
               (("0.png", RED), ("1.png", BLUE), ("json", TEXT))]  # fmt: skip
    path = stored(folder, members)
    config = data_config(folder, {"a": {"data_paths": [path]}})
    template = make_template(config)
    catalog = build_catalog(config, template, config.data.dataset)
    reader, request = DocumentReader(template, media_settings(config)), catalog.request(1)
    wanted = dataclasses.replace(request, wanted=tuple(range(request.num_tiles)))
    CountingStore.reset()
    document = reader.read(wanted)
    assert CountingStore.ranges == [(request.place.offset, request.place.size)]
    assert CountingStore.lookups == []
    assert [tile[0, 0].tolist() for tile in document.pixels] == [[255, 0, 0], [0, 0, 255]]
    assert requests_by(lambda: reader.read(request)) == 1


def test_a_scattered_sample_is_one_request_for_each_range(tmp_path):
    path = stored(tmp_path, [("0.a.png", RED), ("1.png", BLUE), ("0.b.png", BLUE), ("0.json", TEXT), ("1.txt", "b")])
    place = places_of(path)[0]
    assert [read_bytes(ref) for ref in read(path, place).images] == [RED, BLUE]
    assert CountingStore.ranges == list(place.ranges)
    assert (len(place.ranges), CountingStore.lookups) == (2, [])


@pytest.mark.parametrize("order", [1, -1])
def test_a_large_film_is_not_read_as_a_whole(tmp_path, order, monkeypatch):
    monkeypatch.setattr(webdataset, "JOINED_BYTES", len(FILM))
    path = stored(tmp_path, [("0.json", json.dumps({"caption": "it"})), ("0.mp4", FILM)][::order])
    (place,) = places_of(path)
    (film,) = read(path, place).videos
    assert transferred() < 3 * webdataset.JOINED_TEXT_BYTES
    assert (film.content, film.size) == (None, len(FILM))


@pytest.mark.parametrize("order", [1, -1])
def test_pictures_that_no_rank_decodes_are_not_read(tmp_path, order):
    members = [("0.json", json.dumps({"caption": "it"})), ("0.png", RED + FILM)]
    path = stored(tmp_path, members[::order])
    (place,) = places_of(path)
    sample = read(path, place, with_media=False)
    assert transferred() < webdataset.JOINED_TEXT_BYTES
    assert requests_by(lambda: read(path, place)) == 1
    assert transferred() == place.size
    assert read(path, place) == sample, "the bytes of a picture do not count"


def test_a_part_of_an_archive_is_read_as_samples(tmp_path):
    """Two pieces of headers, then one request for each sample with its picture."""
    members = [(f"{n}.{end}", content) for n in range(9) for end, content in
               (("png", RED + bytes(20_000)), ("txt", "red"))]  # fmt: skip
    path = stored(tmp_path, members)
    for _, _, sample in read_all("webdataset", path):
        (picture,) = sample.images
        assert len(read_bytes(picture)) == len(RED) + 20_000
    large = [size for _, size in CountingStore.ranges if size > 20_000]
    assert len(large) == 9


def test_a_range(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    for path in (str(tmp_path / "a"), f"file://{tmp_path}/a", CountingStore.address(tmp_path / "a")):
        assert remote.read_range(path, 3, 4) == b"3456"
        assert remote.read_range(path, 8, 4) == b"89"
    with pytest.raises(FileNotFoundError):
        remote.read_range(str(tmp_path / "none"), 0, 1)
