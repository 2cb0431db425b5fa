"""A file that as a whole is not of its format is one error, which says what it is and how to read it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sqlite3
import zipfile

import pytest

from longvita.data.errors import Reason
from longvita.data.formats import make_format
from longvita.data.formats.checked import WHOLE_FILE
from longvita.data.formats.record import NO_OPTIONS
from longvita.data.formats.wrong_format import LINE_BYTES, wrong_format
from longvita.data.index.build import IndexSettings
from longvita.data.index.process_pool import IndexProcessPool
from longvita.data.index.store import IndexJob, load_index
from longvita.data.sample import Sample
from tests.unit.data.format_material import llava, png, read_all, write_arrow, write_parquet, write_tar
from tests.unit.data.material import conversation, write_jsonl

ROWS = [{"question": "what?", "answer": "it"}] * 4
SAMPLES = [llava(f"number {number}") for number in range(9)]
LINES = "".join(f"{json.dumps(sample)}\n" for sample in SAMPLES).encode()
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1\nsize 12345\n"
PAGE = (
    b"<!DOCTYPE html>\n<html>\n<head><title>Log in</title></head>\n" + b"<p>Please log in.</p>\n" * 300 + b"</html>\n"
)
ERROR = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code>\n</Error>'
TABLE = b"image,caption\n" + b"a.png,it is red\n" * 300


def dumped(**options):
    return json.dumps(SAMPLES, **options).encode()


def as_zip(folder):
    with zipfile.ZipFile(folder / "made", "w") as archive:
        archive.writestr("a.jsonl", LINES)


def as_database(folder):
    connection = sqlite3.connect(folder / "made")
    connection.execute("create table samples (question text, answer text)")
    connection.commit()
    connection.close()


def with_content(content):
    return lambda folder: (folder / "made").write_bytes(content)


ARRAY = "it is a JSON array; fix: set its source's format to json"
JSONL = "it is JSONL, one object a line; fix: set its source's format to jsonl"
GZIP, POINTER = "it is a gzip file; fix: gunzip -c", "it is a Git LFS pointer in place of the file; fix: git lfs pull"
HTML, UTF_16 = "it is an HTML page, such as a login or error page", "it is UTF-16, not UTF-8; fix: iconv -f UTF-16"
PARQUET, ARROW = "it is a Parquet table; fix: set its source's format to parquet", "it is an Arrow table; fix: name it"
TAR, DATABASE = (
    "it is a tar archive; fix: set its source's format to webdataset",
    "it is an SQLite database; fix: write",
)
EMPTY, CSV = "the file is empty", "it is CSV or TSV; fix: write its rows as JSONL"
KINDS = {
    "array": (with_content(dumped()), ARRAY),
    "pretty array": (with_content(dumped(indent=2)), ARRAY),
    "array of lines": (with_content(b"[" + LINES.strip().replace(b"\n", b",\n") + b"]"), ARRAY),
    "array with brackets on lines": (with_content(b"[\n" + LINES.strip().replace(b"\n", b",\n") + b"\n]\n"), ARRAY),
    "array with a mark": (with_content(b"\xef\xbb\xbf \n" + dumped(indent=2)), ARRAY),
    "lines": (with_content(LINES), JSONL),
    "gzip": (with_content(gzip.compress(LINES)), GZIP),
    "bzip2": (with_content(bz2.compress(LINES)), "it is a bzip2 file; fix: bunzip2"),
    "xz": (with_content(lzma.compress(LINES)), "it is an xz file; fix: xz -dc"),
    "zstd": (with_content(b"\x28\xb5\x2f\xfd\x24" + LINES), "it is a zstd file; fix: zstd -dc"),
    "zip": (as_zip, "it is a ZIP archive"),
    "parquet": (lambda folder: write_parquet(folder / "made", ROWS), PARQUET),
    "arrow": (lambda folder: write_arrow(folder / "made", ROWS), ARROW),
    "tar": (lambda folder: write_tar(folder / "made", [("1.png", png("red")), ("1.txt", "it is red")]), TAR),
    "database": (as_database, DATABASE),
    "page": (with_content(PAGE), HTML),
    "page in small letters": (with_content(b"\n\n<html lang='en'>" + PAGE), HTML),
    "error of a store": (with_content(ERROR), "it is the error of a store in place of the file; fix: fetch it again"),
    "xml": (
        with_content(b'<?xml version="1.0"?>\n<a>\n<b/>\n</a>'),
        "it is XML; fix: write its samples",
    ),
    "pointer": (with_content(LFS), POINTER),
    "utf-16": (with_content(LINES.decode().encode("utf-16")), UTF_16),
    "csv": (with_content(TABLE), CSV),
    "tsv": (with_content(TABLE.replace(b",", b"\t")), CSV),
    "zeros": (with_content(bytes(20_000)), "it is zeros, not copied or downloaded completely; fix: fetch it again"),
    "picture": (with_content(png("red", 99)), "it is binary data"),
    "text": (with_content(b"It was a dark night.\n" * 99), "it is text that begins with 'It was a dark night.'"),
    "python": (with_content(b"{'question': 'what?', 'answer': 'it'}\n" * 99), "it is Python dicts, not JSON; fix"),
    "pretty objects": (with_content(b"".join(json.dumps(s, indent=1).encode() + b"\n" for s in SAMPLES)), "jq -c ."),
    "empty": (with_content(b""), EMPTY),
    "blank": (with_content(b" \n\n"), EMPTY),
}
OWN = {"jsonl": {"lines"}, "json": {kind for kind in KINDS if "array" in kind}, "webdataset": {"tar", "zeros"},
       "parquet": {"parquet"}, "arrow": {"arrow"}}  # fmt: skip
OTHER_WORDS = {
    ("json", "pretty objects"): "it is a JSON object; fix: set its source's format to jsonl if each line is one",
    ("parquet", "picture"): "is no table of format parquet",
    ("parquet", "utf-16"): "is no table of format parquet",
    ("arrow", "picture"): "is no table of format parquet",
    ("arrow", "utf-16"): "is no table of format parquet",
    ("webdataset", "utf-16"): "it is binary data",
}
"""What a file is in messages of a format, where it differs."""


@pytest.mark.parametrize("expected", OWN)
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_one_error(tmp_path, expected, kind):
    make, says = KINDS[kind]
    make(tmp_path)
    path = (tmp_path / "made").rename(tmp_path / f"a.{expected}")
    found = list(read_all("parquet" if expected == "arrow" else expected, path, 100))
    if kind in OWN[expected]:
        assert all(getattr(content, "reason", None) != Reason.WRONG_FORMAT for _, _, content in found)
        return
    ((_, place, error),) = found
    assert (place.line, error.reason) == (1, Reason.WRONG_FORMAT)
    assert OTHER_WORDS.get((expected, kind), says) in error.detail


@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.csv"])
@pytest.mark.parametrize("content, says", [(LFS, POINTER), (PAGE, HTML), (gzip.compress(TABLE), GZIP), (b"", EMPTY)])
def test_a_list_of_captions(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "a.png").write_bytes(png("red"))
    ((_, _, error),) = read_all("captions", tmp_path)
    assert error.reason == Reason.WRONG_FORMAT
    assert name in error.detail and says in error.detail


GOOD = json.dumps(conversation("hello"))
DAMAGED = {
    "half a line": [GOOD[:20], *[GOOD] * 3],
    "no object": ['["x"]', *[GOOD] * 3],
    "a list of turns": [json.dumps(SAMPLES[0]["conversations"]), *[GOOD] * 3],
    "half a list": [json.dumps(SAMPLES[0]["conversations"])[:20], *[GOOD] * 3],
    "a bracket": ["[", *[GOOD] * 3],
    "a brace": ["{", *[GOOD] * 3],
    "words": ["Hello, world", *[GOOD] * 3],
    "a comment": ["# made on a Monday", *[GOOD] * 3],
    "a python dict": ["{'a': 1}", *[GOOD] * 3],
    "latin-1": [json.dumps(conversation("é"), ensure_ascii=False), *[GOOD] * 3],
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_first_line_costs_itself_alone(tmp_path, kind):
    path = tmp_path / "a.jsonl"
    path.write_bytes("".join(f"{line}\n" for line in DAMAGED[kind]).encode("latin-1"))
    found = [content for _, _, content in read_all("jsonl", path)]
    assert [getattr(content, "reason", None) in (Reason.INVALID_JSON, Reason.INVALID_SAMPLE) for content in found] == [
        True,
        *[False] * 3,
    ]
    assert all(isinstance(content, Sample) for content in found[1:])


@pytest.mark.parametrize("length", [100_000, 2 * LINE_BYTES])
def test_long_lines(tmp_path, length):
    path = write_jsonl(tmp_path / "a.jsonl", [conversation("a" * length)] * 2)
    assert wrong_format(str(path), "jsonl") is None
    assert "set its source's format to jsonl" in wrong_format(str(path), "json")
    (tmp_path / "b.jsonl").write_text(json.dumps([conversation("a" * length)] * 2))
    assert ARRAY in wrong_format(str(tmp_path / "b.jsonl"), "jsonl")


def test_the_index_notices_a_file_of_another_format(tmp_path, template):
    """A table is replaced by a page, that by an archive, and that by the table again."""
    path = write_parquet(tmp_path / "a.parquet", ROWS)
    settings = IndexSettings(str(tmp_path), "parquet")
    good, job = path.read_bytes(), IndexJob(IndexProcessPool(template, 0), settings, tmp_path / "cache")
    counts = []
    for content in (good, PAGE, gzip.compress(PAGE), good):
        path.write_bytes(content)
        index = load_index(path, job)
        counts.append((len(index), [entry.detail.partition(";")[0] for entry in index.quarantined]))
    table = "the file is not a Parquet table: it is"
    page = f"{table} an HTML page, such as a login or error page, in place of the file"
    assert counts == [(4, []), (0, [page]), (0, [f"{table} a gzip file"]), (4, [])]


def test_a_repaired_file_has_no_error_at_its_old_place(tmp_path):
    path, format = write_jsonl(tmp_path / "a.jsonl", SAMPLES), make_format("jsonl", NO_OPTIONS)
    assert WHOLE_FILE not in format.parts(str(path), 100)
    assert list(format.samples(str(path), WHOLE_FILE)) == []
