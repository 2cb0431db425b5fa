"""The same record gives the same sample, or the same refusal, in each format that can hold it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pyarrow
import pytest

from longvita.data.errors import Reason
from longvita.data.formats.record import FormatOptions
from longvita.data.media.media_file import read_bytes, resolve
from longvita.data.sample import Sample, Turn
from tests.unit.data.format_material import (
    dump_json,
    embedded,
    llava,
    png,
    read_all,
    write_arrow,
    write_csv,
    write_parquet,
    write_tar,
)
from tests.unit.data.material import conversation, write_jsonl

RED, BLUE, FILM = png("red"), png("blue"), b"a film"
MEDIA = {"a.png": RED, "b.png": BLUE, "v.mp4": FILM, "pexels/1.mp4": FILM}
AS_TEXT = base64.b64encode(RED).decode()
OPTIONS = FormatOptions(prompt="What is it?", roles=(("Robot", "assistant"),))


def said(*turns: tuple[str, object], **more: object) -> dict:
    """A record of messages."""
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def rated(role: str, content: str, **loss: object) -> dict:
    """A turn with its loss or weight."""
    return {"role": role, "content": content, **loss}


def asked(*parts: object, **more: object) -> dict:
    """A record whose question has several parts; all contents are lists, as a table wants it."""
    return said(("user", list(parts)), ("assistant", [{"type": "text", "text": "red"}]), **more)


def turns(*pairs: tuple[str, str]) -> tuple[Turn, ...]:
    return tuple(Turn(*pair) for pair in pairs)


def answered(question: str, answer: str = "red") -> tuple[Turn, ...]:
    return turns(("user", question), ("assistant", answer))


TEXT = {"type": "text", "text": "What colour?"}
NULLS = {"role": None, "content": None}
ONE = ("<image>What colour?", [RED])

PICTURES: dict[str, tuple[dict, str]] = {
    "published": (conversation("<image>What colour?", "red", images=["a.png"]), ONE[0]),
    "without marks": (conversation("What colour?", "red", images=["a.png"]), "<image>\nWhat colour?"),
    "one string": ({**conversation("<image>?", "red"), "images": "a.png"}, "<image>?"),
    "empty list next to a path": ({**llava("<image>?", "red", image="a.png"), "images": []}, "<image>?"),
    "nulls in the list": ({**conversation("<image>?", "red"), "images": [None, "a.png"]}, "<image>?"),
    "parts, listed": (asked({"type": "image"}, TEXT, images=["a.png"]), ONE[0]),
    "parts, a path": (asked({"type": "image", "image": "a.png"}, TEXT), ONE[0]),
    "parts, a struct": (asked({"type": "image", "image": {"path": "a.png", "bytes": None}}, TEXT), ONE[0]),
    "parts, an address": (asked({"type": "image_url", "image_url": {"url": "a.png"}}, TEXT), ONE[0]),
    "parts, named by transformers": (asked({"type": "image", "path": "a.png"}, TEXT), ONE[0]),
    "parts, base64 of transformers": (asked({"type": "image", "base64": AS_TEXT}, TEXT), ONE[0]),
    "parts, a data address": (
        asked({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{AS_TEXT}"}}, TEXT),
        ONE[0],
    ),
    "parts, a source": (
        asked({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": AS_TEXT}}, TEXT),
        ONE[0],
    ),
    "parts without types": (asked({"image": "a.png"}, {"text": "What colour?"}), ONE[0]),
    "parts and the same in the list": (asked({"type": "image", "image": "a.png"}, TEXT, images=["a.png"]), ONE[0]),
    "base64 text": ({**conversation("<image>?", "red"), "images": [AS_TEXT]}, "<image>?"),
    "a data address": ({**conversation("<image>?", "red"), "image": f"data:image/png;base64,{AS_TEXT}"}, "<image>?"),
    "inline as in Qwen-VL": (
        {"conversations": [{"from": "user", "value": "Picture 1: <img>a.png</img>\nWhat?"},
                           {"from": "assistant", "value": "red"}]}, "Picture 1: <image>\nWhat?"),
    "null role next to from": (
        {"conversations": [{**NULLS, "from": "human", "value": "<image>?"}, {**NULLS, "from": "gpt", "value": "red"}],
         "messages": None, "image": "a.png", "images": None}, "<image>?"),
    "null from next to role": (
        {"messages": [{"role": "user", "content": "<image>?", "from": None, "value": None},
                      {"role": "assistant", "content": "red", "from": None, "value": None}],
         "conversations": None, "image": None, "images": ["a.png"]}, "<image>?"),
    "a sequence of structs": (
        {"conversations": {"from": ["human", "gpt"], "value": ["<image>?", "red"]}, "image": "a.png"}, "<image>?"),
    "a sequence of picture structs": (
        {**conversation("<image>?", "red"), "images": {"path": ["a.png"], "bytes": [None]}}, "<image>?"),
    "messages as JSON text": ({"messages": json.dumps(conversation("<image>?", "red")["messages"]), "image": "a.png"},
                              "<image>?"),
    "question and answer": ({"question": "What?", "answer": "red", "image": "a.png"}, "<image>\nWhat?"),
    "caption": ({"caption": "red", "image": "a.png"}, "<image>\nWhat is it?"),
    "turns of user and assistant": ({"texts": [{"user": "What?", "assistant": "red"}], "images": ["a.png"]},
                                    "<image>\nWhat?"),
    "roles in capitals": (
        {"conversations": [{"from": "Human", "value": "<image>?"}, {"from": "Bot", "value": "red"}], "image": "a.png"},
        "<image>?"),
    "a role of the config": (
        {"conversations": [{"from": "human", "value": "<image>?"}, {"from": "Robot", "value": "red"}],
         "image": "a.png"}, "<image>?"),
}  # fmt: skip
"""Records of one picture that is red, and their question."""

OTHERS: dict[str, tuple[dict, tuple[Turn, ...], list[bytes], list[bytes]]] = {
    "LLaVA-Video": (llava("<image>\nWhat?", "red", video="v.mp4"), answered("<video>\nWhat?"), [], [FILM]),
    "a video in a part": (
        asked({"type": "video", "video": "v.mp4"}, TEXT), answered("<video>What colour?"), [], [FILM]),
    "ShareGPT4Video": (
        {"video_id": "1", "video_path": "pexels/1.mp4", "zip_folder": "pexels.zip", "keyframe": [0, 66],
         "captions": [{"idx": "0", "content": "a part"}, {"idx": "-1", "content": "the film"}]},
        answered("<video>\nWhat is it?", "the film"), [], [FILM]),
    "FineVideo": (
        {"video": "v.mp4", "json": {"content_metadata": {"description": "all", "qAndA": [
            {"answer": "one", "question": "1?"}, {"answer": "two", "question": "2?"}]}}},
        turns(("user", "<video>\n1?"), ("assistant", "one"), ("user", "2?"), ("assistant", "two")), [], [FILM]),
    "two pictures, listed and own": (
        asked({"type": "image", "image": None}, {"type": "image", "image": "b.png"}, images=["a.png"]),
        answered("<image><image>"), [RED, BLUE], []),
    "a system message of the record": (
        {"system": "Be brief.", **llava("hello", "hi")},
        turns(("system", "Be brief."), ("user", "hello"), ("assistant", "hi")), [], []),
    "a system message of both": (
        {"system": "No.", **said(("system", "Be brief."), ("user", "hello"), ("assistant", "hi"))},
        turns(("system", "Be brief."), ("user", "hello"), ("assistant", "hi")), [], []),
    "an empty system message": (
        said(("system", ""), ("user", "hello"), ("assistant", "hi")),
        turns(("system", ""), ("user", "hello"), ("assistant", "hi")), [], []),
    "a mark without a picture": (conversation("What is <image>?", "a mark"), answered("What is <image>?", "a mark"),
                                 [], []),
    "a list of no picture": ({**conversation("<image>?", "red"), "images": [None]}, answered("<image>?"), [], []),
    "HTML is no picture": (conversation("<img>x</img>", "no"), answered("<img>x</img>", "no"), [], []),
    "tools": (
        {"conversations": [{"from": "human", "value": "sum?"}, {"from": "function_call", "value": "add(1, 1)"},
                           {"from": "observation", "value": "2"}, {"from": "gpt", "value": "two"}]},
        turns(("user", "sum?"), ("assistant", "add(1, 1)"), ("user", "2"), ("assistant", "two")), [], []),
    "loss": (
        {"messages": [rated("user", "1?", loss=None), rated("assistant", "one", loss=False),
                      rated("user", "2?", loss=None), rated("assistant", "two", loss=True)]},
        (*answered("1?", "one")[:1], Turn("assistant", "one", False), *answered("2?", "two")), [], []),
    "weight": (
        {"messages": [rated("user", "1?", weight=None), rated("assistant", "one", weight=0),
                      rated("user", "2?", weight=None), rated("assistant", "two", weight=1)]},
        (*answered("1?", "one")[:1], Turn("assistant", "one", False), *answered("2?", "two")), [], []),
    "both lists of turns": ({**conversation("new?"), **llava("old?")}, answered("old?", "yes"), [], []),
    "a number as the answer": ({"question": "how many?", "answer": 3}, answered("how many?", "3"), [], []),
}  # fmt: skip

REFUSED: dict[str, tuple[dict, Reason, str]] = {
    "no text": ({"image": "a.png"}, Reason.INVALID_SAMPLE, "fix: name them in the source's columns"),
    "an unknown role": (said(("user", "x"), ("alien", "y")), Reason.INVALID_SAMPLE, "fix: name its ChatML role"),
    "no answer": (said(("user", "x")), Reason.NO_ANSWER, "no assistant turn with loss"),
    "no answer with loss": (
        {"messages": [rated("user", "x", loss=None), rated("assistant", "y", loss=False)]},
        Reason.NO_ANSWER, "no assistant turn with loss"),
    "half a weight": (
        {"messages": [rated("user", "x", weight=None), rated("assistant", "y", weight=0.5)]},
        Reason.INVALID_SAMPLE, "turn 1 has weight 0.5; fix: 0 or 1"),
    "an empty answer": (said(("user", "x"), ("assistant", " ")), Reason.EMPTY_TURN, "turn 1 (assistant) has no text"),
    "a null answer": (said(("user", "x"), ("assistant", None)), Reason.EMPTY_TURN, "turn 1 (assistant) has no text"),
    "too many marks": (conversation("<image><image>", images=["a.png"]), Reason.MARK_COUNT, "2 <image> marks for 1"),
    "two marks for a video": (llava("<image><image>", video="v.mp4"), Reason.MARK_COUNT, "0 <video> marks for 1"),
    "an unknown part": (asked({"type": "audio"}, TEXT), Reason.INVALID_SAMPLE, "a part of type 'audio'"),
    "a part without its picture": (
        asked({"type": "image"}, TEXT), Reason.MARK_COUNT, "none is listed; fix: list them"),
    "frames as a list": (
        asked({"type": "video", "video": ["1.png", "2.png"]}, TEXT),
        Reason.INVALID_SAMPLE, "has 2 files under 'video'"),
    "broken base64": (
        {**conversation("<image>", "y"), "images": ["data:image/png;base64,$$$"]},
        Reason.INVALID_SAMPLE, "images[0] is no base64"),
    "a picture under another name": (
        conversation("<image>?") | {"photo": "a.png"}, Reason.MARK_COUNT, "fix: columns: {images: photo}"),
    "lists of other lengths": (
        {"conversations": {"from": ["human"], "value": ["x", "y"]}}, Reason.INVALID_SAMPLE, "1 from, 2 value"),
    "a caption of nothing": ({"caption": "red"}, Reason.INVALID_SAMPLE, "a caption without a picture or video"),
    "several captions": (
        {"captions": ["one", "two"], "image": "a.png"}, Reason.INVALID_SAMPLE, "columns: {caption: captions.0}"),
    "a list as the answer": ({"question": "x", "answer": ["y", "z"]}, Reason.INVALID_SAMPLE,
        "columns: {answer: answer.0}"),
}  # fmt: skip

TABLES = {"parquet": write_parquet, "arrow": write_arrow}


def contents(record: dict, folder: Path) -> dict[str, object]:
    """What each format that can hold a record reads from it: a Sample or a SampleError."""
    for name, content in MEDIA.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    files = {
        "jsonl": ("jsonl", write_jsonl(folder / "a.jsonl", [record])),
        "json": ("json", dump_json(folder / "a.json", [record])),
        "webdataset": ("webdataset", write_tar(folder / "a.tar", [("1.json", json.dumps(record))])),
    }
    for name, write in TABLES.items():
        try:
            files[name] = ("parquet", write(folder / f"a.{name}", [record]))
        except pyarrow.ArrowException:
            assert any(isinstance(value, list) for value in record.values()), "columns of one row always have a type"
    found = {}
    for name, (kind, path) in files.items():
        ((_, _, found[name]),) = read_all(kind, path, options=OPTIONS)
    return found


def parts_of(sample: object, folder: Path) -> tuple:
    assert isinstance(sample, Sample), sample
    media = ([read_bytes(resolve(ref, folder)) for ref in refs] for refs in (sample.images, sample.videos))
    return (sample.turns, *media)


@pytest.mark.parametrize("case", PICTURES)
def test_a_record_of_a_picture(case, tmp_path):
    record, question = PICTURES[case]
    found = contents(record, tmp_path)
    assert {"jsonl", "json", "webdataset"} <= set(found)
    expected = (answered(question), [RED], [])
    assert {name: parts_of(sample, tmp_path) for name, sample in found.items()} == dict.fromkeys(found, expected)


@pytest.mark.parametrize("case", PICTURES)
def test_a_record_next_to_its_picture(case, tmp_path):
    """In an archive and in a folder, the picture that the record means is the one next to it, whatever its name."""
    record, question = PICTURES[case]
    archive = write_tar(tmp_path / "a.tar", [("1.json", json.dumps(record)), ("1.png", RED)])
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "1.png").write_bytes(RED)
    dump_json(folder / "1.json", record)
    listed = tmp_path / "listed"
    listed.mkdir()
    (listed / "1.png").write_bytes(RED)
    write_jsonl(listed / "metadata.jsonl", [{"file_name": "1.png", **record}])
    for kind, path in (("webdataset", archive), ("captions", folder), ("captions", listed)):
        ((_, _, sample),) = read_all(kind, path, options=OPTIONS)
        assert parts_of(sample, tmp_path) == (answered(question), [RED], [])


@pytest.mark.parametrize("case", ["messages as JSON text", "question and answer", "caption"])
def test_a_record_of_texts_in_a_list_of_captions(case, tmp_path):
    record, question = PICTURES[case]
    (tmp_path / "a.png").write_bytes(RED)
    write_csv(tmp_path / "captions.csv", [list(record), list(record.values())])
    ((_, _, sample),) = read_all("captions", tmp_path, options=OPTIONS)
    assert parts_of(sample, tmp_path) == (answered(question), [RED], [])


@pytest.mark.parametrize("case", [name for name, (record, *_) in REFUSED.items() if "a.png" in str(record)])
def test_refused_records_next_to_their_picture(case, tmp_path):
    record, reason, _ = REFUSED[case]
    if "photo" in record:
        return  # There the picture next to the record is the one that its mark means.
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.png").write_bytes(RED)
    dump_json(tmp_path / "folder" / "1.json", record)
    archive = write_tar(tmp_path / "a.tar", [("1.json", json.dumps(record)), ("1.png", RED)])
    for kind, path in (("webdataset", archive), ("captions", tmp_path / "folder")):
        ((_, _, error),) = read_all(kind, path, options=OPTIONS)
        assert getattr(error, "reason", error) == reason


@pytest.mark.parametrize("case", OTHERS)
def test_other_records(case, tmp_path):
    record, *expected = OTHERS[case]
    found = contents(record, tmp_path)
    assert {name: parts_of(sample, tmp_path) for name, sample in found.items()} == dict.fromkeys(found, tuple(expected))
    assert set(found) >= {"jsonl", "json", "webdataset"}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_records(case, tmp_path):
    record, reason, detail = REFUSED[case]
    found = contents(record, tmp_path)
    assert {name: getattr(error, "reason", error) for name, error in found.items()} == dict.fromkeys(found, reason)
    assert all(detail in error.detail for error in found.values()), [error.detail for error in found.values()]


def test_most_records_fit_a_table(tmp_path):
    records = [*(case[0] for case in PICTURES.values()), *(case[0] for case in OTHERS.values())]
    held = sum(len(contents(record, tmp_path)) == 5 for record in records)
    assert held >= len(records) - 2


@pytest.mark.parametrize("suffix", TABLES)
def test_bytes_in_the_parts_of_a_table(suffix, tmp_path):
    """What only a table can hold: bytes, and rows whose keys are null because other rows have them."""
    parts = [{"type": "image", "image": {"bytes": RED, "path": "x.png"}, "text": None},
             {"type": "text", "image": None, "text": "What colour?"}]  # fmt: skip
    answer = [{"type": "text", "image": None, "text": "red"}]
    rows = [said(("user", parts), ("assistant", answer), system=None, tools=None),
            said(("user", parts[1:]), ("assistant", answer), system="Be brief.", tools="[]")]  # fmt: skip
    found = [one for _, _, one in read_all("parquet", TABLES[suffix](tmp_path / f"a.{suffix}", rows))]
    assert embedded(found[0].images) == [(RED, "x.png")]
    assert [one.turns[-2].text for one in found] == ["<image>What colour?", "What colour?"]
    assert [len(one.turns) for one in found] == [2, 3]
    assert [one.unused for one in found] == [(), ("tools",)]


@pytest.mark.parametrize("suffix", TABLES)
def test_finevideo_as_it_is_published(suffix, tmp_path):
    about = {"content_metadata": {"description": "all", "fps": 25.0,
                                  "qAndA": [{"answer": "one", "question": "1?"}]}, "duration_seconds": 9}  # fmt: skip
    path = TABLES[suffix](tmp_path / f"a.{suffix}", [{"mp4": FILM, "json": about}])
    ((_, _, sample),) = read_all("parquet", path, options=OPTIONS)
    assert parts_of(sample, tmp_path) == (answered("<video>\n1?", "one"), [], [FILM])
    assert sample.unused == ("duration_seconds",)
    options = FormatOptions((("caption", "content_metadata.description"),), "What is it?")
    ((_, _, sample),) = read_all("parquet", path, options=options)
    assert parts_of(sample, tmp_path) == (answered("<video>\nWhat is it?", "all"), [], [FILM])
