"""A thousand samples, half of them wrong in some way: each is delivered or accounted for, and the good ones all are."""

from __future__ import annotations

import base64
import json
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from longvita.data.loader import LoaderRanks, build_loader
from longvita.data.loading import worker_pool as pool_module
from longvita.data.mix.catalog import make_template
from longvita.data.quarantine import read_quarantine
from tests.programs import need_programs
from tests.unit.data.format_material import llava, png
from tests.unit.data.material import (
    conversation,
    cut_file,
    data_config,
    picture,
    sequences_per_epoch,
    write_audio,
    write_jsonl,
    write_tokenizer,
    write_video,
)

SAMPLES = 1000
MEMORY = 1024**3
"""Most that a worker may hold, bytes: its bound for decoding, and the program itself."""
HANGING_DECODER = """
import sys, time
here = sys.path.pop(0)
del sys.modules["av"]
import av
real = av.open
def open(file, *arguments, **options):
    if "hangs" in str(file):
        time.sleep(1000)
    return real(file, *arguments, **options)
av.open = open
sys.path.insert(0, here)
"""
"""A module that replaces PyAV and passes everything on to it, except files of one name."""

Make = Callable[[str, random.Random], object]


def write_media(folder: Path) -> None:
    """Whole files, and broken ones of every kind."""
    picture("coffee").resize((96, 64)).save(folder / "good.png")
    picture("chelsea").save(folder / "good.jpg")
    Image.new("L", (100_000, 8), 120).save(folder / "wide.png")
    write_damaged_metadata(folder)
    write_video(folder / "good.mp4", 20)
    write_video(folder / "hangs.mp4", 20)
    early = ["ffmpeg", "-v", "error", "-i", str(folder / "good.mp4"), "-c", "copy", "-output_ts_offset", "-5"]
    subprocess.run([*early, "-avoid_negative_ts", "disabled", str(folder / "negative.mkv")], check=True)
    cut_file(folder / "good.jpg", folder / "cut.jpg")
    cut_file(folder / "good.mp4", folder / "cut.mp4")
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no film")
    write_audio(folder / "audio.mp4")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")  # Refused by its header.
    Image.new("1", (12_000, 12_000)).save(folder / "large_bomb.png")  # Its pixels as RGB are 432 MB.
    picture("coffee").save(folder.parent / "outside.png")


DAMAGED_METADATA = ("exif.webp", "exif.avif", "profile.png", "text.png", "tags.tif", "exif.jpg", "turned.tif")
"""Pictures whose pixels are whole."""


def write_damaged_metadata(folder: Path) -> None:
    """DAMAGED_METADATA: junk instead of EXIF, a description outside the file, large texts; a turned TIFF picture."""
    photograph, turned, texts = picture("coffee").resize((96, 64)), Image.Exif(), PngInfo()
    turned[0x010F], turned[0x0112] = "Maker", 6
    texts.add_text("a", "b" * (8 << 20), zip=True)
    options: dict[str, dict] = {"text.png": {"pnginfo": texts}, "profile.png": {"icc_profile": b"b" * (8 << 20)}}
    options["tags.tif"] = {"tiffinfo": {270: "text " * 9}}
    for name in DAMAGED_METADATA:
        photograph.save(folder / name, **options.get(name, {"exif": turned}))
    junk, outside = b"\0" * 8, b"\xff\xff\xff\x7f"
    for name, mark, distance, new in (
        ("exif.webp", b"Maker", -38, junk),
        ("exif.avif", b"Maker", -38, junk),
        ("exif.jpg", b"Maker", -38, junk),
        ("tags.tif", struct.pack("<HH", 270, 2), 8, outside),
    ):
        content = (folder / name).read_bytes()
        start = content.index(mark) + distance
        (folder / name).write_bytes(content[:start] + new + content[start + len(new) :])


def with_image(name: str) -> Make:
    return lambda tag, _: conversation(f"<image>{tag}?", "x", images=[name])


def with_video(name: str) -> Make:
    return lambda tag, _: conversation(f"<video>{tag}?", "x", videos=[name])


def half_a_line(tag: str, chance: random.Random) -> str:
    line = json.dumps(conversation(f"{tag}?", "x"))
    return line[: chance.randrange(1, len(line))]


def with_parts(*parts: object) -> Make:
    """A question in parts."""
    return lambda tag, _: conversation([*parts, {"type": "text", "text": f"{tag}?"}], "x")


def with_nulls(tag: str, _: random.Random) -> object:
    nulls = {"role": None, "content": None}
    turns = [{**nulls, "from": "Human", "value": f"<image>{tag}?"}, {**nulls, "from": "gpt", "value": "x"}]
    return {"messages": None, "conversations": turns, "image": "good.png", "images": []}


def weighted(*weights: object) -> Make:
    """An answer for each weight."""
    return lambda tag, _: {
        "messages": [
            turn
            for weight in weights
            for turn in ({"role": "user", "content": f"{tag}?"}, {"role": "bot", "content": "x", "weight": weight})
        ]
    }


RED = base64.b64encode(png("red")).decode()
FORMS: dict[str, Make] = {
    "no marks": lambda tag, _: conversation(tag, images=["good.png"]),
    "marks of nothing": lambda tag, _: conversation(f"<image><video>{tag}?"),
    "nulls as pictures": lambda tag, _: conversation(f"<image>{tag}?", images=[None]),
    "a part": with_parts({"type": "image", "image": "good.png"}),
    "a video part": with_parts({"type": "video", "video": "good.mp4"}),
    "an address with base64": with_parts({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{RED}"}}),
    "base64": lambda tag, _: llava(f"<image>{tag}?", image=RED),
    "inline": lambda tag, _: llava(f"Picture 1: <img>good.jpg</img>{tag}?"),
    "null keys": with_nulls,
    "structs of lists": lambda tag, _: {"conversations": {"from": ["human", "gpt"], "value": [f"{tag}?", "x"]}},
    "a system message": lambda tag, _: {**llava(f"{tag}?"), "system": "Be brief.", "tools": "[]", "id": tag},
    "an empty system message": lambda tag, _: {**llava(f"{tag}?"), "system": ""},
    "a picture mark for a video": lambda tag, _: llava(f"<image>{tag}?", video="good.mp4"),
    "weights": weighted(0, 1),
    "question": lambda tag, _: {"question": f"{tag}?", "answer": 7, "image": "good.png"},
    "caption": lambda tag, _: {"caption": f"{tag}", "video_path": "good.mp4"},
}
"""Records as other makers write them."""
BAD_FORMS: dict[str, Make] = {
    "an empty part": with_parts({"type": "image"}),
    "an unknown part": with_parts({"type": "audio", "audio": "a.wav"}),
    "two frames": with_parts({"type": "video", "video": ["good.png", "good.png"]}),
    "a part outside": with_parts({"type": "image", "path": "../outside.png"}),
    "an inline address": lambda tag, _: llava(f"<img>https://example.com/a.jpg</img>{tag}?"),
    "a web picture": with_image("https://example.com/a.jpg"),
    "broken base64": lambda tag, _: llava(f"<image>{tag}?", image="data:image/png;base64,?"),
    "base64 of no picture": lambda tag, _: llava(f"<image>{tag}?", image="iVBORw0KGgo" + "A" * 89),
    "another name": lambda tag, _: llava(f"<image>{tag}?", photo="good.png"),
    "half a weight": weighted(0.5),
    "no weight": weighted(0),
    "an unknown role": lambda tag, _: {"messages": [{"role": "alien", "content": tag}]},
    "a caption of nothing": lambda tag, _: {"caption": tag},
    "a picture as a path": lambda tag, _: llava(f"<image>{tag}?", image=f"a/{RED * 1000}"),
}
GOOD: dict[str, Make] = {
    **FORMS,
    "text": lambda tag, chance: conversation(f"{tag}? " + "words " * chance.randrange(20), "x"),
    "png": with_image("good.png"),
    "jpg": with_image("good.jpg"),
    "wide": with_image("wide.png"),
    **{name: with_image(name) for name in DAMAGED_METADATA},
    "mp4": with_video("good.mp4"),
    "several": lambda tag, _: conversation(
        f"<image><video>{tag}<image>?", images=["good.png"] * 2, videos=["good.mp4"]
    ),
    "below": with_image("../media/good.png"),
}
BAD: dict[str, Make] = {
    **BAD_FORMS,
    "half a line": half_a_line,
    "no object": lambda tag, _: json.dumps([tag]),
    "no answer": lambda tag, _: {"messages": [{"role": "user", "content": tag}]},
    "empty turn": lambda tag, _: conversation(tag, "  "),
    "too few marks": lambda tag, _: conversation(f"<image>{tag}", images=["good.png"] * 2),
    "too many marks": lambda tag, _: conversation(f"<video><video>{tag}", videos=["good.mp4"]),
    **{name: with_image(name) for name in ("cut.jpg", "zero.jpg", "absent.jpg", "bomb.png", "large_bomb.png", ".")},
    **{name: with_video(name) for name in ("cut.mp4", "zero.mp4", "text.mp4", "audio.mp4", "absent.mp4")},
    "../outside.png": with_image("../outside.png"),
    "/dev/zero": with_image("/dev/zero"),
    "absolute": lambda tag, _: conversation(f"<image>{tag}", images=[str(Path(sys.executable))]),
}
RARE: dict[str, Make] = {"hangs.mp4": with_video("hangs.mp4")}
"""Bad too; each costs seconds."""
EITHER: dict[str, Make] = {"negative.mkv": with_video("negative.mkv")}


def fuzzed(chance: random.Random) -> tuple[list[object], list[str]]:
    """Lines and the kind of each."""
    kinds = [
        *chance.choices(list(GOOD), k=500),
        *chance.choices(list(BAD), k=490),
        *["hangs.mp4"] * 2,
        *["negative.mkv"] * 8,
    ]
    chance.shuffle(kinds)
    makers = GOOD | BAD | RARE | EITHER
    return [makers[kind](f"#{number:04}", chance) for number, kind in enumerate(kinds)], kinds


@pytest.fixture
def config(tmp_path, monkeypatch):
    need_programs("ffmpeg")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "av.py").write_text(HANGING_DECODER)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "code"), *sys.path])
    monkeypatch.setattr(pool_module, "GRACE_SECONDS", 4.0)
    (tmp_path / "media").mkdir()
    write_tokenizer(tmp_path / "tokenizer")
    write_media(tmp_path / "media")
    config = data_config(tmp_path, {"a": {"data_paths": ["a.jsonl"]}})
    fields = {
        "max_quarantined": 1.0,
        "num_workers": 2,
        "decode_timeout_seconds": 2.0,
        "decode_memory_bytes": 256 * 1024**2,
    }
    return config.model_copy(update={"data": config.data.model_copy(update=fields)})


@pytest.mark.timeout(280)
def test_every_sample_is_delivered_or_accounted_for(tmp_path, config):
    lines, kinds = fuzzed(random.Random(42))
    assert len(lines) == SAMPLES
    write_jsonl(tmp_path / "a.jsonl", lines)
    tokenizer, delivered, most = make_template(config).tokenizer, set(), 0
    loader = build_loader(config, LoaderRanks())
    try:
        for _ in range(sequences_per_epoch(loader)):
            ids = next(loader).input_ids[0]
            delivered |= {int(tag) for tag in re.findall(r"#(\d{4})", tokenizer.decode(ids.tolist()))}
            held = [process.memory_info().rss for process in psutil.Process().children(recursive=True)]
            most = max([most, *held])
    finally:
        loader.close()
    quarantined = {entry.line - 1 for entry in read_quarantine(Path(config.output) / "quarantine.jsonl")}
    good = {number for number, kind in enumerate(kinds) if kind in GOOD}
    bad = {number for number, kind in enumerate(kinds) if kind in BAD | RARE}
    wrong = {number: kinds[number] for number in (good - delivered) | (bad - quarantined) | (delivered & quarantined)}
    assert wrong == {}, "good ones that are missing, bad ones that are not quarantined, or both"
    assert delivered | quarantined == set(range(SAMPLES))
    assert most < MEMORY, f"a worker held {most >> 20} MiB"
