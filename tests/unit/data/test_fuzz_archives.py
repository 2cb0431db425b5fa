"""A thousand samples of an archive with their members in any order, half of them wrong: no part is lost in silence."""

from __future__ import annotations

import io
import json
import random
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

from longvita.data.formats.tar_keys import key_of
from longvita.data.loader import LoaderRanks, build_loader
from longvita.data.mix.catalog import make_template
from longvita.data.quarantine import read_quarantine
from longvita.data.storage.hidden import is_hidden
from tests.unit.data.format_material import llava, png
from tests.unit.data.material import data_config, sequences_per_epoch

SAMPLES = 1000
BLOCK = 50
"""Samples whose members are mixed with each other."""
RED, BLUE = png("red"), png("blue")
LINK = None
"""The content of a link."""

Members = list[tuple[str, bytes | str | None]]
Make = Callable[[str], Members]
"""Members of a sample, whose names begin with its key."""


def text(key: str, marks: str = "<image>") -> tuple[str, str]:
    return f"{key}.json", json.dumps(llava(f"{marks}#{key}?", "x"))


GOOD: dict[str, Make] = {
    "a picture": lambda key: [(f"{key}.png", RED), text(key)],
    "the text first": lambda key: [text(key), (f"{key}.png", RED)],
    "a picture without a mark": lambda key: [(f"{key}.png", RED), text(key, "")],
    "two pictures": lambda key: [(f"{key}.0.png", RED), (f"{key}.1.png", BLUE), text(key, "<image><image>")],
    "a caption": lambda key: [(f"{key}.png", RED), (f"{key}.txt", f"#{key}")],
    "a text alone": lambda key: [text(key, "")],
    "files of macOS": lambda key: [
        (f"._{key}.png", "Mac"), (f"{key}.png", RED), (f"__MACOSX/._{key}.json", "Mac"), text(key)],
    "a member that is not read": lambda key: [(f"{key}.npy", "array"), (f"{key}.png", RED), text(key)],
}  # fmt: skip
BAD: dict[str, Make] = {
    "no text": lambda key: [(f"{key}.png", RED)],
    "a caption of nothing": lambda key: [(f"{key}.txt", f"#{key}")],
    "half a text": lambda key: [(f"{key}.png", RED), (f"{key}.json", text(key)[1][:-9])],
    "two texts": lambda key: [(f"{key}.1.png", RED), text(f"{key}.1"), (f"{key}.2.png", RED), text(f"{key}.2")],
    "two texts alone": lambda key: [text(f"{key}.1", ""), text(f"{key}.2", "")],
    "two captions": lambda key: [(f"{key}.png", RED), (f"{key}.txt", f"#{key}"), (f"{key}.b.txt", f"#{key}")],
    "a text twice": lambda key: [(f"{key}.png", RED), text(key), text(key)],
    "all twice": lambda key: [(f"{key}.png", RED), text(key)] * 2,
    "a linked picture": lambda key: [(f"{key}.png", LINK), text(key, "")],
    "a linked text": lambda key: [(f"{key}.png", RED), (f"{key}.json", LINK)],
    "too few pictures": lambda key: [(f"{key}.png", RED), text(key, "<image><image>")],
    "a broken picture": lambda key: [(f"{key}.png", "none"), text(key)],
    "an absent picture": lambda key: [(f"{key}.json", json.dumps(llava(f"<image>#{key}?", image="none.png")))],
}


def fuzzed(chance: random.Random) -> tuple[Members, list[str]]:
    """Members in their order, and the kind of each sample. Half of the samples have their members as neighbours."""
    kinds = [*chance.choices(list(GOOD), k=SAMPLES // 2), *chance.choices(list(BAD), k=SAMPLES // 2)]
    chance.shuffle(kinds)
    members: Members = []
    for first in range(0, SAMPLES, BLOCK):
        pieces: list[Members] = []
        for number in range(first, first + BLOCK):
            own = (GOOD | BAD)[kinds[number]](f"{number:04}")
            pieces += [own] if chance.random() < 0.5 else [[member] for member in own]
        chance.shuffle(pieces)
        members += [member for piece in pieces for member in piece]
    return members, kinds


def write_archive(path: Path, members: Members) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info, data = tarfile.TarInfo(name), content.encode() if isinstance(content, str) else content
            if data is LINK:
                info.type, info.linkname = tarfile.LNKTYPE, "0000.png"
            else:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data or b""))


def test_every_sample_of_an_archive_is_delivered_or_accounted_for(folder):
    members, kinds = fuzzed(random.Random(42))
    write_archive(folder / "a.tar", members)
    config = data_config(folder, {"a": {"data_paths": ["a.tar"]}}, max_quarantined=1.0)
    tokenizer, delivered, tiles = make_template(config).tokenizer, set(), 0
    loader = build_loader(config, LoaderRanks())
    try:
        for _ in range(sequences_per_epoch(loader)):
            batch = next(loader)
            delivered |= {int(tag) for tag in re.findall(r"#(\d{4})", tokenizer.decode(batch.input_ids[0].tolist()))}
            tiles += len(batch.tiles)
    finally:
        loader.close()
    keys = list(dict.fromkeys(key_of(name) for name, _ in members if not is_hidden(name)))
    quarantined = {int(keys[entry.line - 1]) for entry in read_quarantine(Path(config.output) / "quarantine.jsonl")}
    good = {number for number, kind in enumerate(kinds) if kind in GOOD}
    wrong = {number: kinds[number] for number in (good ^ delivered) | (delivered & quarantined)}
    assert wrong == {}, "good ones that are missing, bad ones that are delivered, or both"
    assert delivered | quarantined == set(range(SAMPLES))
    pictures = {"a text alone": 0, "two pictures": 2}
    assert tiles == sum(pictures.get(kinds[number], 1) for number in good)
