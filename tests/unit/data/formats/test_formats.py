"""For every format: parts of any size have the same samples, and each place returns its sample."""

from __future__ import annotations

import itertools
import os
import typing

import pytest

from longvita.config.schema import Column, DataFormat
from longvita.data.errors import DataError
from longvita.data.formats import FORMATS, jsonl, make_format, read_samples
from longvita.data.formats.base import Part
from longvita.data.formats.paths import FORMAT_OF_ENDING, format_of
from longvita.data.formats.record import COLUMNS, NO_OPTIONS, FormatOptions
from longvita.data.index.build import IndexSettings
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexJob, load_index
from longvita.data.sample import Sample
from tests.unit.data.format_material import (
    dump_json,
    llava,
    png,
    read_all,
    write_arrow,
    write_csv,
    write_index,
    write_parquet,
    write_tar,
)
from tests.unit.data.material import conversation, write_jsonl

COUNT = 9
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "navy", "pink", "gold")
ROWS = [{"question": f"what {n}?", "answer": f"{n}", "image": {"bytes": png(c), "path": f"{c}.png"}} for n, c in
        enumerate(COLOURS)]  # fmt: skip


def test_a_line_without_an_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_SAMPLE_BYTES", 1000)
    path = write_jsonl(tmp_path / "a.jsonl", [conversation("a"), conversation("b" * 5000), conversation("c")])
    assert max(len(line) for _, line in jsonl.lines_of(str(path), Part(0, path.stat().st_size))) == 1001
    for part_bytes in (100, 10**6):
        found = [content for _, _, content in read_all("jsonl", path, part_bytes)]
        assert [getattr(content, "detail", "") for content in found] == ["", "the line is longer than 0 MiB", ""]


def make_jsonl(folder):
    return write_jsonl(folder / "a.jsonl", [conversation(f"number {number}") for number in range(COUNT)])


def make_json(folder):
    return dump_json(folder / "a.json", [llava(f"<image>number {n}", image=f"{n}.png") for n in range(COUNT)], indent=1)


def make_parquet(folder):
    return write_parquet(folder / "a.parquet", ROWS)


def make_arrow(folder):
    return write_arrow(folder / "a.arrow", ROWS)


def make_webdataset(folder):
    members = [(f"{n:03}.{end}", content) for n, colour in enumerate(COLOURS)
               for end, content in (("png", png(colour)), ("txt", f"it is {colour}"))]  # fmt: skip
    return write_tar(folder / "a.tar", members)


def make_indexed_webdataset(folder):
    path = make_webdataset(folder)
    write_index(path)
    return path


def make_captions(folder):
    (folder / "pictures" / "more").mkdir(parents=True)
    for number, colour in enumerate(COLOURS):
        place = folder / "pictures" / ("more" if number % 2 else "")
        (place / f"{colour}.png").write_bytes(png(colour))
        (place / f"{colour}.txt").write_text(f"it is {colour}\n")
    return folder / "pictures"


def make_metadata(folder):
    (folder / "pictures").mkdir()
    rows = [{"file_name": f"{colour}.png", "text": f"it is {colour}"} for colour in COLOURS]
    write_jsonl(folder / "pictures" / "metadata.jsonl", rows)
    return folder / "pictures"


def make_table(folder):
    (folder / "pictures").mkdir()
    rows = [("image", "caption"), *((f"{colour}.png", f'a "{colour}"\none, it is') for colour in COLOURS)]
    write_csv(folder / "pictures" / "captions.csv", rows)
    return folder / "pictures"


MAKERS = {
    "jsonl": ("jsonl", make_jsonl),
    "json": ("json", make_json),
    "parquet": ("parquet", make_parquet),
    "arrow": ("parquet", make_arrow),
    "webdataset": ("webdataset", make_webdataset),
    "webdataset with index": ("webdataset", make_indexed_webdataset),
    "captions": ("captions", make_captions),
    "captions in metadata.jsonl": ("captions", make_metadata),
    "captions in captions.csv": ("captions", make_table),
}


@pytest.fixture(params=MAKERS)
def data_file(request, tmp_path):
    """Name of a format and a data file of COUNT samples in it."""
    name, make = MAKERS[request.param]
    return name, make(tmp_path)


def test_every_format_is_known_to_the_config_and_is_tested():
    assert typing.get_args(DataFormat) == tuple(FORMATS)
    assert set(FORMAT_OF_ENDING.values()) | {"captions"} == set(FORMATS)
    assert {name for name, _ in MAKERS.values()} == set(FORMATS)
    assert set(typing.get_args(Column)) == set(COLUMNS)


def test_an_unknown_format():
    with pytest.raises(DataError, match="no format 'xml'; the formats are jsonl, json"):
        make_format("xml", NO_OPTIONS)


def test_by_the_end_of_the_name(data_file):
    name, path = data_file
    assert format_of(str(path)) == name


def test_all_samples_are_found_in_order(data_file):
    name, path = data_file
    found = list(read_all(name, path))
    contents = [content for _, _, content in found]
    assert all(isinstance(content, Sample) for content in contents)
    assert len(set(contents)) == COUNT
    assert [place.line for _, place, _ in found] == list(range(1, COUNT + 1))
    assert list(read_samples(str(path), None, NO_OPTIONS)) == [(place, content) for _, place, content in found]


def test_a_place_returns_its_sample(data_file):
    name, path = data_file
    format = make_format(name, NO_OPTIONS)
    for _, place, sample in reversed(list(read_all(name, path))):
        assert format.read(str(path), place) == sample


@pytest.mark.parametrize("part_bytes", [1, 100, 700, 4096, 5000, 20_000])
def test_parts_of_any_size_have_the_same_samples(data_file, part_bytes):
    name, path = data_file
    found, whole = list(read_all(name, path, part_bytes)), list(read_all(name, path))
    assert [(place.offset, place.size, content) for _, place, content in found] == [
        (place.offset, place.size, content) for _, place, content in whole
    ]
    parts = list(dict.fromkeys(part for part, _, _ in found))
    assert all(before.end == after.start for before, after in itertools.pairwise(parts))
    for part in parts:
        own = [place.line for owner, place, _ in found if owner == part]
        assert own == list(range(1, len(own) + 1))


def test_small_parts_are_many(data_file):
    name, path = data_file
    table = name == "captions" and (path / "captions.csv").exists()
    parts = make_format(name, NO_OPTIONS).parts(str(path), 1)
    assert len(parts) == 1 if table else len(parts) > 3


def test_a_digest_stays_until_the_content_changes(data_file):
    name, path = data_file
    format = make_format(name, NO_OPTIONS)
    digests = [format.digest(str(path), part) for part in format.parts(str(path), 1)]
    assert digests == [format.digest(str(path), part) for part in format.parts(str(path), 1)]
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    changed = next((file for file in files if file.suffix in (".txt", ".jsonl", ".csv")), files[0])
    changed.write_bytes(changed.read_bytes().replace(b"it", b"It").replace(b"number 1", b"Number 1"))
    os.utime(changed, (1, 1))  # A table is compared by its time.
    assert digests != [format.digest(str(path), part) for part in format.parts(str(path), 1)]


def test_an_empty_array_and_an_empty_archive_hold_no_sample(tmp_path):
    dump_json(tmp_path / "a.json", [])
    write_tar(tmp_path / "a.tar", [])
    assert [*read_all("json", tmp_path / "a.json"), *read_all("webdataset", tmp_path / "a.tar")] == []


@pytest.mark.parametrize("kind, processes", [("parquet", 2), ("parquet", 0), ("webdataset", 0), ("captions", 1)])
def test_indexed_and_read_through_the_index(kind, processes, tmp_path, template):
    name, make = MAKERS[kind]
    path = make(tmp_path)
    settings = IndexSettings(str(tmp_path), name)
    with IndexProcessPool(template, processes) as pool:
        index = load_index(path, IndexJob(pool, settings, tmp_path / "cache", part_bytes=1))
    assert (len(index), len(index.quarantined)) == (COUNT, 0)
    assert index.facts(3).pictures[0].width == 8
    samples = [settings.make_format().read(str(path), index.place(number)) for number in range(COUNT)]
    assert samples == [content for _, _, content in read_all(name, path)]


def test_another_choice_of_columns_is_another_index(tmp_path, template):
    jobs = [
        IndexJob(IndexProcessPool(template, 0), IndexSettings("", "parquet", options), tmp_path)
        for options in (NO_OPTIONS, FormatOptions((("answer", "label"),)), FormatOptions(prompt="What?"))
    ]
    assert len({job.folder("a.parquet") for job in jobs}) == 3
