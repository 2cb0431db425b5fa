"""Byte order marks are no part of a text in any format, and UTF-16 is named as such."""

from __future__ import annotations

import json

import pytest

from longvita.data.errors import SampleError
from longvita.data.formats.text import other_encoding
from tests.unit.data.format_material import dump_json, llava, png, read_all, samples_of, write_csv, write_tar
from tests.unit.data.material import write_jsonl

MARK, RED = b"\xef\xbb\xbf", png("red")
RECORD = {"caption": "it is red"}


def pictures(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(RED)
    return folder


def make_folder(folder):
    pictures(folder / "p", "1.png", "2.png")
    (folder / "p" / "1.txt").write_text("it is red")
    dump_json(folder / "p" / "2.json", RECORD)
    return "captions", folder / "p", sorted((folder / "p").glob("*.[tj]*"))


def make_metadata(folder):
    pictures(folder / "p", "1.png")
    path = write_jsonl(folder / "p" / "metadata.jsonl", [{"file_name": "1.png", **RECORD}] * 2)
    return "captions", folder / "p", [path]


def make_csv(folder):
    pictures(folder / "p", "1.png")
    rows = [("file_name", "caption"), ("1.png", "it is red"), ("1.png", "it is red")]
    return "captions", folder / "p", [write_csv(folder / "p" / "captions.csv", rows)]


def make_jsonl(folder):
    return "jsonl", folder / "a.jsonl", [write_jsonl(folder / "a.jsonl", [llava("x?", "it is red")] * 2)]


def make_json(folder):
    return "json", folder / "a.json", [dump_json(folder / "a.json", [llava("x?", "it is red")] * 2)]


MAKERS = (make_folder, make_metadata, make_csv, make_jsonl, make_json)


@pytest.mark.parametrize("make", MAKERS)
def test_a_byte_order_mark_is_no_text(make, tmp_path):
    kind, path, texts = make(tmp_path)
    assert texts
    for text in texts:
        text.write_bytes(MARK + text.read_bytes())
    assert [sample.turns[-1].text for sample in samples_of(kind, path)] == ["it is red"] * 2


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_named(make, encoding, tmp_path):
    kind, path, texts = make(tmp_path)
    for text in texts:
        text.write_bytes(text.read_text().encode(encoding))
    errors = [content for _, _, content in read_all(kind, path, 40)]
    assert len(errors) == (2 if make is make_folder else 1), "a list is one error"
    assert all(isinstance(error, SampleError) for error in errors)
    name = encoding.upper()[:6]
    assert all(f"it is {name}, not UTF-8; fix: iconv -f {name} -t UTF-8" in error.detail for error in errors)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_texts_of_an_archive(encoding, tmp_path):
    texts = [("1.txt", "it is red"), ("2.json", json.dumps(RECORD)), ("3.cls", "it is red")]
    members = [one for name, text in texts for one in ((name, text.encode(encoding)), (f"{name[0]}.png", RED))]
    found = [content for _, _, content in read_all("webdataset", write_tar(tmp_path / "a.tar", members))]
    if encoding == "utf-8-sig":
        assert [sample.turns[-1].text for sample in found] == ["it is red"] * 3
    else:
        assert all("it is UTF-16, not UTF-8; fix: iconv" in error.detail for error in found)


@pytest.mark.parametrize("text", ["", "a", "é", "7", "[]", "𝄞"])
def test_utf_8_is_no_other_encoding(text):
    assert other_encoding(text.encode()) is None
