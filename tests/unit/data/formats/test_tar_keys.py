"""Members of a key make one sample wherever they lie in the archive, and two samples of one key are refused."""

from __future__ import annotations

import io
import json
import random
import tarfile

import pytest

from longvita.data.errors import Reason
from longvita.data.formats import make_format, webdataset
from longvita.data.formats.record import NO_OPTIONS
from longvita.data.formats.tar_keys import find_runs
from longvita.data.index.build import IndexSettings
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexJob, load_index
from longvita.data.media.media_file import read_bytes
from tests.unit.data.format_material import png, read_all, reasons_of, samples_of, write_index, write_tar

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "navy", "pink", "gold")
PICTURES = {f"{number}": png(colour) for number, colour in enumerate(COLOURS)}


def text_of(key):
    return f"{key}.json", json.dumps({"question": "what?", "answer": f"number {key}"})


def picture_of(key):
    return f"{key}.png", PICTURES[key]


def neighbours(keys):
    return [member for key in keys for member in (picture_of(key), text_of(key))]


def shuffled(members, seed=0):
    return random.Random(seed).sample(members, len(members))


ALL = list(PICTURES)
ORDERS = {
    "pairs": [*map(picture_of, "01"), *map(text_of, "01"), *map(picture_of, "23"), *map(text_of, "32")],
    "pictures first": [*map(picture_of, ALL), *map(text_of, ALL)],
    "texts first": [*map(text_of, ALL), *map(picture_of, ALL)],
    "shuffled": shuffled(neighbours(ALL)),
    "one far away": [picture_of("0"), *neighbours(ALL[1:]), text_of("0")],
    "neighbours": neighbours(ALL),
}


@pytest.fixture(params=ORDERS)
def archive(request, tmp_path):
    return write_tar(tmp_path / "a.tar", ORDERS[request.param])


def assert_complete(samples):
    """Each sample has its own picture."""
    for sample in samples:
        assert [read_bytes(ref) for ref in sample.images] == [PICTURES[sample.turns[1].text.removeprefix("number ")]]
        assert sample.turns[0].text == "<image>\nwhat?"


def first_keys(archive):
    with tarfile.open(archive) as opened:
        return list(dict.fromkeys(name.split(".")[0] for name in opened.getnames()))


@pytest.mark.parametrize("max_held", [0, 3, 1 << 16])
@pytest.mark.parametrize("part_bytes", [1, 3000, 1 << 40])
def test_members_of_a_key_are_joined(archive, part_bytes, max_held, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_HELD", max_held)
    found = list(read_all("webdataset", archive, part_bytes))
    assert_complete([sample for _, _, sample in found])
    assert [sample.turns[1].text for _, _, sample in found] == [f"number {key}" for key in first_keys(archive)]
    format = make_format("webdataset", NO_OPTIONS)
    for _, place, sample in reversed(found):
        assert format.read(str(archive), place) == sample


def test_members_of_a_key_are_joined_by_an_index_file(tmp_path):
    """DALI writes the members of a key into one line; here the lines must be in the order of the archive."""
    path = write_tar(tmp_path / "a.tar", ORDERS["neighbours"])
    write_index(path)
    assert_complete(samples_of("webdataset", path))


def test_neighbours_have_one_range(tmp_path):
    path = write_tar(tmp_path / "a.tar", ORDERS["one far away"])
    places = [place for _, place, _ in read_all("webdataset", path)]
    assert [len(place.ranges) for place in places] == [2] + [1] * (len(ALL) - 1)


def test_a_sample_of_many_ranges(tmp_path):
    pictures = [(f"0.{number}.png", png(colour)) for number, colour in enumerate(COLOURS)]
    members = [member for pair in zip(pictures, map(text_of, "123456789")) for member in pair]
    path = write_tar(tmp_path / "a.tar", [*members, text_of("0")])
    (_, place, sample), *others = read_all("webdataset", path, 1)
    assert [read_bytes(ref) for ref in sample.images] == [png(colour) for colour in COLOURS]
    assert len(place.ranges) == 10
    assert [other.images for _, _, other in others] == [()] * 9


def test_a_part_has_all_members_of_its_keys(archive):
    format = make_format("webdataset", NO_OPTIONS)
    parts = format.parts(str(archive), 1)
    runs = [find_runs(str(archive), part.start, part.end) for part in parts]
    keys = [set(one.keys.tolist()) for one in runs]
    assert sum(map(len, keys)) == len(set().union(*keys)) == len(first_keys(archive))


def test_parts_begin_wherever_no_earlier_key_comes_again(tmp_path):
    path = write_tar(tmp_path / "a.tar", ORDERS["pairs"])
    assert [part.start for part in make_format("webdataset", NO_OPTIONS).parts(str(path), 1)] == [0, 4096]


def indexed(path, folder, template, part_bytes=1):
    settings = IndexSettings(str(folder), "webdataset")
    with IndexProcessPool(template, 0) as pool:
        return load_index(path, IndexJob(pool, settings, folder / "cache", part_bytes))


def read_indexed(path, index):
    format = make_format("webdataset", NO_OPTIONS)
    return [format.read(str(path), index.place(number)) for number in range(len(index))]


def test_read_through_the_index(archive, tmp_path, template):
    index = indexed(archive, tmp_path, template)
    assert len(index.quarantined) == 0
    samples = read_indexed(archive, index)
    assert samples == samples_of("webdataset", archive)
    assert_complete(samples)


def test_the_index_of_neighbours_has_no_ranges(tmp_path, template):
    index = indexed(write_tar(tmp_path / "a.tar", ORDERS["neighbours"]), tmp_path, template)
    assert len(index.ranges) == 0


@pytest.mark.parametrize("more", [[*map(picture_of, "56"), *map(text_of, "56")], [text_of("3")]])
def test_a_grown_archive(tmp_path, template, more, monkeypatch):
    """New keys leave the parts before the last one as they are; a member of an old key renews its part."""
    first = [*ORDERS["pairs"][:6], text_of("2"), *neighbours("4")]
    path = write_tar(tmp_path / "a.tar", first)
    before = indexed(path, tmp_path, template)
    assert [entry.line for entry in before.quarantined] == [4], "the text of 3 is missing"
    read, real = [], webdataset.WebDataset.samples
    monkeypatch.setattr(
        webdataset.WebDataset, "samples", lambda self, path, part: read.append(part.start) or real(self, path, part)
    )
    write_tar(path, [*first, *more])
    after = indexed(path, tmp_path, template)
    assert 0 not in read, "the first part has all members of its keys"
    monkeypatch.undo()
    samples = read_indexed(path, after)
    assert_complete(samples)
    assert samples == [sample for _, _, sample in read_all("webdataset", path) if hasattr(sample, "turns")]
    assert len(samples) == len(before) + (2 if len(more) > 1 else 1)


BLOCKS = [*map(text_of, "0123"), *map(picture_of, "0123"), *map(text_of, "45678"), *map(picture_of, "45678")]


@pytest.mark.parametrize("part_bytes", [1, 1 << 40])
@pytest.mark.parametrize("kept", range(1, 18))
@pytest.mark.parametrize("members", [ORDERS["texts first"], BLOCKS], ids=["one block", "two blocks"])
def test_a_damaged_archive_gives_no_sample_without_its_picture(tmp_path, members, kept, part_bytes):
    path = write_tar(tmp_path / "a.tar", members)
    path.write_bytes(path.read_bytes()[: kept * 1024 + 512])
    found = [content for _, _, content in read_all("webdataset", path, part_bytes)]
    broken = [content.detail for content in found if not hasattr(content, "turns")]
    assert broken and all("the archive can't be read" in detail for detail in broken)
    texts_alone = kept < members.index(picture_of("0"))
    if not texts_alone:  # Otherwise nothing shows that pictures are to follow.
        assert_complete([content for content in found if hasattr(content, "turns")])


def test_two_texts_of_one_key_are_quarantined(tmp_path):
    names = ("22.05", "22.06")
    pictures = [(f"{name}.png", png(colour)) for name, colour in zip(names, COLOURS)]
    texts = [text_of(name) for name in names]
    path = write_tar(tmp_path / "a.tar", [pictures[0], texts[0], *neighbours("1"), pictures[1], texts[1]])
    (_, place, error), (_, _, good) = read_all("webdataset", path)
    assert (place.line, error.reason) == (1, Reason.INVALID_SAMPLE)
    assert error.detail == (
        "22.05.json and 22.06.json are two texts of the key 22, which ends at the first dot; fix: rename the members "
        "of each sample, such as 22_06.json"
    )
    assert_complete([good])


@pytest.mark.parametrize("first, second", [("1.txt", "1.b.txt"), ("1.json", "1.JSON"), ("d/1.a.cls", "d/1.cls")])
def test_texts_of_one_kind(tmp_path, first, second):
    path = write_tar(tmp_path / "a.tar", [(first, '{"caption": "a"}'), (second, "{}"), ("1.png", PICTURES["1"])])
    assert "are two texts of the key" in next(read_all("webdataset", path))[2].detail


def test_texts_of_several_kinds_are_one_sample(tmp_path):
    texts = [("1.cls", "7"), ("1.json", '{"width": 8}'), ("1.txt", "number 1")]
    for members in (texts, texts[::-1]):
        (sample,) = samples_of("webdataset", write_tar(tmp_path / "a.tar", [*members, picture_of("1")]))
        assert sample.turns[1].text == "number 1"
        assert sample.unused == (".cls", "width")


@pytest.mark.parametrize("again", [[text_of("1")], [picture_of("1")], neighbours("1")])
def test_a_name_that_comes_twice_is_quarantined(tmp_path, again):
    """Another sample of the same name, or its newer version (`tar -r`): which of them, only the user knows."""
    path = write_tar(tmp_path / "a.tar", neighbours("12"))
    with tarfile.open(path, "a") as opened:
        for name, content in again:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content.encode() if isinstance(content, str) else content))
    (_, _, error), (_, _, good) = read_all("webdataset", path)
    assert error.reason == Reason.INVALID_SAMPLE
    assert f"{again[0][0]} is in the archive twice; fix: name each sample differently, or" in error.detail
    assert_complete([good])


def test_members_that_are_not_read_are_named(tmp_path):
    members = [text_of("1"), ("1.flac", b"sound"), ("1.seg.npy", b"array"), ("1", b"picture")]
    (sample,) = samples_of("webdataset", write_tar(tmp_path / "a.tar", members))
    assert sample.unused == ("(no suffix)", ".flac", ".npy")


def test_a_sparse_picture_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (picture_of("1"), text_of("1")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if name.endswith("png"):
                info.pax_headers = {"GNU.sparse.map": f"1000,{len(content)}", "GNU.sparse.size": "9000"}
            archive.addfile(info, io.BytesIO(content if isinstance(content, bytes) else content.encode()))
    assert reasons_of("webdataset", path) == [(1, Reason.INVALID_SAMPLE)]
    assert "1.png is stored as a sparse file; fix" in next(read_all("webdataset", path))[2].detail


@pytest.mark.parametrize(
    "headers",
    [
        {"GNU.sparse.map": "a,b", "GNU.sparse.size": "5"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"},
        {"GNU.sparse.size": "x"},
        {"size": str(1 << 70)},
        {"size": "-512"},
        {"size": "-1536"},
    ],
    ids=str,
)
@pytest.mark.parametrize("first", [True, False])
def test_a_damaged_header_is_an_error_of_its_sample(tmp_path, headers, first):
    path = tmp_path / "a.tar"
    good = [] if first else neighbours("12")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in (*good, ("3.png", b"3")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.pax_headers = headers if name == "3.png" else {}
            archive.addfile(info, io.BytesIO(content if isinstance(content, bytes) else content.encode()))
    *before, error = [content for _, _, content in read_all("webdataset", path)]
    assert error.reason == Reason.INVALID_SAMPLE and "the archive can't be read from here" in error.detail
    assert_complete(before)
    assert first or before


@pytest.mark.parametrize("begin", ["PAR1", "PK\3\4", "BZh91AY&SY", "/annex/objects/", "<html>", "Rar!\x1a\7"])
def test_an_archive_whose_first_name_begins_as_another_file(tmp_path, begin):
    path = write_tar(tmp_path / "a.tar", [(f"{begin}_shop/{name}", content) for name, content in neighbours("12")])
    assert make_format("webdataset", NO_OPTIONS).problem(str(path)) is None
    assert_complete(samples_of("webdataset", path))


def test_files_that_macos_adds_are_no_members(tmp_path):
    """With them between, members are still neighbours."""
    added = b"\0\5\x16\7" + bytes(100)
    members = [
        (name, content)
        for key in ALL
        for member in (picture_of(key), text_of(key))
        for name, content in ((f"./._{member[0]}", added), (f"./{member[0]}", member[1]))
    ]
    members += [(f"__MACOSX/._{key}.json", added) for key in ALL] + [("./.DS_Store", added), ("d/Thumbs.db", added)]
    found = list(read_all("webdataset", write_tar(tmp_path / "a.tar", members), 4096))
    assert_complete([sample for _, _, sample in found])
    assert [len(place.ranges) for _, place, _ in found] == [1] * len(ALL)
