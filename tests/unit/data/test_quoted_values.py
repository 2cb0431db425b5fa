"""No message, log line or quarantine entry quotes more than 200 characters of a value, whatever a record holds."""

from __future__ import annotations

import base64
import io
import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from longvita.data.loader import LoaderRanks, build_loader
from longvita.data.quarantine import read_quarantine
from longvita.errors import MAX_QUOTED, shorten
from tests.unit.data.format_material import llava, write_csv, write_parquet, write_tar
from tests.unit.data.material import conversation, data_config, picture, sequences_per_epoch, write_jsonl

BIG = "Q" * 1_000_000
MAX_MESSAGE = 1000


def cut_picture() -> bytes:
    """A picture whose header is intact."""
    content = io.BytesIO()
    picture("coffee").save(content, "png")
    return content.getvalue()[:20_000]


CUT = base64.b64encode(cut_picture()).decode()
ROLE = [{"role": BIG, "content": "hello"}, {"role": "assistant", "content": "yes"}]
REFERENCES = {
    "a name": BIG,
    "a path": "Q/" * 500_000,
    "a path with a suffix": f"{BIG}.png",
    "a long name": "Q" * 240 + ".png",
    "a long path": "Q" * 240 + "/" + "Q" * 240 + ".png",
    "an absolute path": f"/{BIG}",
    "a path outside": f"../{BIG}",
    "an address": f"https://{BIG}/{BIG}.png",
    "an address of a file": f"file:///{BIG}",
    "an unknown scheme": f"Q{BIG}://{BIG}",
    "base64 that is none": f"data:image/png;base64,{BIG}?",
    "base64 of nothing": f"data:image/png;base64,{BIG}",
    "percents": f"data:image/png,{BIG}",
    "a start of base64": f"iVBORw0KGgo{BIG}",
    "no end of base64": f"iVBORw0KGgo{BIG}?",
    "a struct": {"path": BIG},
    "a struct of text": {"bytes": BIG, "path": BIG},
    "a cut file": {"base64": CUT, "path": BIG},
    "a struct of nothing": {BIG: BIG},
    "a list": [[BIG]],
    "a zero": f"{BIG}\0",
    "half a pair": f"{BIG}\ud800",
}
RECORDS = {
    **{f"images: {kind}": conversation("<image>?", images=[value]) for kind, value in REFERENCES.items()},
    **{f"videos: {kind}": conversation("<video>?", videos=[value]) for kind, value in REFERENCES.items()},
    **{f"a part: {kind}": conversation([{"type": "image", "image": value}]) for kind, value in REFERENCES.items()},
    **{f"inline: {kind}": llava(f"<img>{value}.png</img>") for kind, value in REFERENCES.items() if value is BIG},
    "a role": {"messages": ROLE},
    "a role of bytes": {"messages": [{"role": [BIG], "content": "hello"}]},
    "messages": {"messages": BIG},
    "messages as JSON": {"messages": f"[{BIG}"},
    "a message": {"messages": [BIG]},
    "messages of lists": {"messages": {BIG: ["a"], f"{BIG}{BIG}": []}},
    "a content": conversation([[BIG]]),
    "a kind of part": conversation([{"type": BIG}]),
    "a list in a part": conversation([{"type": "image", "image": [BIG, BIG]}]),
    "a weight": {"messages": [{"role": "assistant", "content": "a", "weight": BIG}]},
    "losses": {"messages": [{"role": "assistant", "content": "a", "weight": 0, "loss": BIG}]},
    "a text of half a pair": conversation(f"{BIG}\ud800"),
    "no messages": {BIG: BIG, f"{BIG}2": None},
    "another key for images": {**conversation("<image>?"), BIG: "a.png"},
    "a nested text": {"json": f"[{BIG}"},
    "captions": {"caption": [BIG, BIG], "image": "one.png"},
    "a system message": {**llava("hello"), "system": [BIG]},
    "a long text": conversation(BIG),
    "empty turns": conversation(" " * 1_000_000),
    "no marks": conversation("<image>" * 100_000, images=["one.png"]),
}
LINES = {
    "half a line": '{"a": "' + BIG,
    "no JSON": BIG,
    "a list": json.dumps([BIG]),
    "an escape": '{"a": "\\q' + BIG + '"}',
}


def check(text: str) -> None:
    assert "Q" * (MAX_QUOTED + 1) not in text, shorten(text, 500)
    assert "iVBORw0KGgo" not in text or len(text) < MAX_MESSAGE
    assert len(text) <= MAX_MESSAGE, shorten(text, 500)


def quarantined(config, caplog) -> dict[int, str]:
    """Line and detail of each sample that is not trained on, after an epoch; everything logged is checked."""
    with caplog.at_level(logging.DEBUG):
        loader = build_loader(config, LoaderRanks())
        for _ in range(sequences_per_epoch(loader)):
            next(loader)
        loader.close()
    for record in caplog.records:
        check(record.getMessage())
    entries = read_quarantine(Path(config.output) / "quarantine.jsonl")
    for entry in entries:
        check(entry.detail)
    return {entry.line: entry.detail for entry in entries}


def config_of(folder, data_path, **source):
    write_jsonl(folder / "good.jsonl", [conversation("hello")])
    sources = {"a": {"data_paths": [data_path], **source}, "good": {"data_paths": ["good.jsonl"]}}
    return data_config(folder, sources, max_quarantined=1.0)


GOOD = conversation("hello")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_records_of_text(folder, caplog, name):
    lines = [json.dumps(record) for record in RECORDS.values()]
    lines = [json.dumps(GOOD), *lines, *(LINES.values() if name == "a.jsonl" else [])]
    text = "\n".join(lines) if name == "a.jsonl" else f"[{','.join(lines)}]"
    (folder / name).write_text(text)
    found = quarantined(config_of(folder, name), caplog)
    kinds = [*RECORDS, *LINES][: len(lines) - 1]
    assert {kind for line, kind in enumerate(kinds, start=2) if line not in found} == set()


def test_rows_of_a_table(folder, caplog):
    fields = {"question": "hello", "answer": "yes", "images": ["one.png"], "videos": None}
    rows = [{**fields, "question": BIG}, {**fields, "answer": ""}, {**fields, "question": "<image>" * 100_000}]
    rows += [{**fields, key: [value]} for key in ("images", "videos") for value in REFERENCES.values()
             if isinstance(value, str) and value.isascii()]  # fmt: skip
    write_parquet(folder / "a.parquet", [{**fields, "images": []}, *rows])
    found = quarantined(config_of(folder, "a.parquet"), caplog)
    assert set(found) == set(range(2, len(rows) + 2))


def test_members_of_an_archive(folder, caplog):
    name = "Q" * 5000
    members = [("0.json", json.dumps(GOOD)), (f"1{name}.json", BIG), (f"2{name}.txt", f"{BIG}".encode("utf-16"))]
    members += [(f"3{name}.txt", "it"), (f"3{name}.png", cut_picture()), (f"4{name}.json", json.dumps({"images": BIG}))]
    members += [(f"5{name}.txt", b"Q" * 1000 + b"\xff"), (f"6{name}.json", "{}" * 99), (f"7{name}.mp4", b"Q" * 10_000)]
    path = write_tar(folder / "a.tar", [*members, (f"8{name}.png", b"Q" * 10_000)])
    path.write_bytes(path.read_bytes()[:-20_000])
    assert len(quarantined(config_of(folder, "a.tar"), caplog)) == 7


def test_lists_of_captions(folder, caplog):
    for kind in "mc":
        (folder / kind).mkdir()
        Image.new("RGB", (8, 8)).save(folder / kind / "a.png")
    names = [BIG, f"/{BIG}", f"../{BIG}", f"https://{BIG}", f"{BIG}.png"]
    rows = [{"file_name": "a.png", "text": "it"}, *({"file_name": name, "text": "it"} for name in names), {BIG: BIG}]
    write_jsonl(folder / "m" / "metadata.jsonl", rows)
    write_csv(
        folder / "c" / "captions.csv", [("image", "text"), ("a.png", "it"), *((name, "it") for name in names), (BIG,)]
    )
    assert set(quarantined(config_of(folder, "m"), caplog)) == {2, 3, 4, 5, 6, 7}
    config = config_of(folder, "c").model_copy(update={"output": str(folder / "other")})
    assert set(quarantined(config, caplog)) == {2, 3, 4, 5, 6, 7}


@pytest.mark.parametrize("length", [0, 1, MAX_QUOTED, MAX_QUOTED + 1, 10**6])
def test_shorten(length):
    text = "".join(chr(ord("a") + number % 26) for number in range(length))
    short = shorten(text)
    assert len(short) <= MAX_QUOTED
    assert short == text if length <= MAX_QUOTED else (short[:100] == text[:100] and short[-40:] == text[-40:])


def test_shorten_makes_one_line():
    assert shorten("a\nb\r\nc") == "a b c"
    assert "\n" not in shorten("a\n" * 1000)
