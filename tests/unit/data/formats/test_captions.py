"""Folders of pictures with captions in files next to them or in one list."""

from __future__ import annotations

import csv
import json

import pytest

from longvita.data.errors import DataError, Reason
from longvita.data.formats import make_format
from longvita.data.formats.record import NO_OPTIONS, FormatOptions
from longvita.data.media.media_file import FilePart, read_bytes
from longvita.data.sample import Sample, Turn
from tests.unit.data.format_material import png, read_all, reasons_of, samples_of, write_csv
from tests.unit.data.material import conversation, write_jsonl

RED = png("red")


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "b.JPG", "more/c.png"):
        (folder / name).write_bytes(RED)
    return folder


def test_texts_next_to_pictures(pictures):
    (pictures / "a.txt").write_text("it is a\n")
    (pictures / "b.json").write_text(json.dumps(conversation("<image>which?", "b")))
    (pictures / "more" / "c.json").write_text(json.dumps({"caption": "c", "score": 1}))
    samples = samples_of("captions", pictures, FormatOptions(prompt="What?"))
    assert [[turn.text for turn in sample.turns] for sample in samples] == [
        ["<image>\nWhat?", "it is a"],
        ["<image>which?", "b"],
        ["<image>\nWhat?", "c"],
    ]
    assert samples[2].images == (FilePart(f"{pictures}/more/c.png", name="more/c.png"),)
    assert read_bytes(samples[2].images[0]) == RED


def test_broken_texts_are_quarantined(pictures):
    (pictures / "b.json").write_text("{oops")
    (pictures / "more" / "c.txt").write_bytes(b"\xff")
    (pictures / "more" / "d.xyz").write_bytes(b"of a kind that nobody knows")
    (pictures / "more" / "d.txt").write_text("of no picture")
    assert reasons_of("captions", pictures) == [
        (1, Reason.NO_ANSWER),
        (2, Reason.INVALID_JSON),
        (3, Reason.INVALID_SAMPLE),
        (4, Reason.INVALID_SAMPLE),
    ]


def test_captions_are_a_folder(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    with pytest.raises(DataError, match="a.jsonl is no folder: captions are a folder"):
        samples_of("captions", tmp_path / "a.jsonl")


def test_a_quote_that_is_never_closed_costs_its_line(pictures, monkeypatch):
    monkeypatch.setattr("longvita.data.formats.captions.ROW_BYTES", 200)
    lines = [
        "file_name,text",
        'a.png,"it, a',
        *["a.png,it is a"] * 50,
        'a.png,"two',
        'lines"',
        'a.png,"no end',
        "a.png,b",
    ]
    (pictures / "captions.csv").write_text("\n".join(lines) + "\n")
    found = [content for _, _, content in read_all("captions", pictures)]
    reasons = [number for number, one in enumerate(found, start=1) if not isinstance(one, Sample)]
    assert reasons == [1, 53]
    assert len(found) == 54
    assert found[51].turns[1].text == "two\nlines"


def test_a_value_of_many_lines(pictures):
    (pictures / "captions.csv").write_text('file_name,text\na.png,"' + "x\n" * 60_000 + '"\n')
    (sample,) = samples_of("captions", pictures)
    assert len(sample.turns[1].text) == 120_000


def test_a_video_is_a_video(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"film")
    (tmp_path / "v.txt").write_text("a film")
    (sample,) = samples_of("captions", tmp_path)
    assert (len(sample.images), len(sample.videos)) == (0, 1)
    assert sample.turns[0] == Turn("user", "<video>\nDescribe what you see.")


def test_metadata(pictures):
    rows = [
        {"file_name": "a.png", "text": "it is a"},
        "",
        {"file_name": "more/c.png", "question": "what?", "answer": "c"},
        {"file_name": "../a.png", "text": "outside"},
        {"file_name": "/etc/passwd", "text": "outside"},
        {"text": "of nothing"},
        "{oops",
        {"file_name": "a.png"},
    ]
    write_jsonl(pictures / "metadata.jsonl", rows)
    found = [content for _, _, content in read_all("captions", pictures)]
    assert found[0].turns[1].text == "it is a"
    assert found[1] is None
    assert found[2].turns[0].text == "<image>\nwhat?"
    assert [(line, reason) for line, reason in reasons_of("captions", pictures)] == [
        (4, Reason.OUTSIDE_MEDIA_ROOT),
        (5, Reason.OUTSIDE_MEDIA_ROOT),
        (6, Reason.INVALID_SAMPLE),
        (7, Reason.INVALID_JSON),
        (8, Reason.INVALID_SAMPLE),
    ]


def test_a_table_with_quotes_and_line_breaks(pictures):
    rows = [
        ("file_name", "caption"),
        ("a.png", 'of "two"\nlines, one'),
        ("b.JPG", "plain"),
        ("more/c.png", ""),
        ("a.png", "one", "more"),
    ]
    path = write_csv(pictures / "captions.csv", rows)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = list(read_all("captions", pictures))
    assert [content.turns[1].text for _, _, content in found[:2]] == ['of "two"\nlines, one', "plain"]
    assert reasons_of("captions", pictures) == [(3, Reason.EMPTY_TURN), (4, Reason.INVALID_SAMPLE)]
    format = make_format("captions", NO_OPTIONS)
    assert format.read(str(pictures), found[1][1]) == found[1][2]


def test_a_quote_within_a_field_opens_nothing(pictures):
    lines = ["file_name,caption", 'a.png,A 5" disc', 'b.JPG,"two\nlines, ""quoted"""', 'more/c.png,3"']
    (pictures / "captions.csv").write_text("\n".join([*lines, ""]))
    texts = [sample.turns[1].text for sample in samples_of("captions", pictures)]
    assert texts == ['A 5" disc', 'two\nlines, "quoted"', '3"']
    with open(pictures / "captions.csv", newline="") as file:
        assert texts == [row[1] for row in csv.reader(file)][1:]


def test_pictures_that_were_deleted(pictures):
    (pictures / "more" / "c.txt").write_text("c")
    format = make_format("captions", NO_OPTIONS)
    *_, (_, last, _) = read_all("captions", pictures)
    (pictures / "a.png").unlink()
    format.parts(str(pictures), 1)
    with pytest.raises(ValueError, match="the folder has 2 pictures and videos now"):
        format.read(str(pictures), last)
