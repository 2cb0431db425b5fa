"""Files that macOS and Windows add are no data in any listing."""

from __future__ import annotations

import fsspec
import pytest

from longvita.data.formats.paths import files_of_entry
from longvita.data.media.media_file import FilePart
from longvita.data.media.video import list_frames, probe_video
from longvita.data.storage import remote
from longvita.data.storage.hidden import is_hidden
from tests.unit.data.format_material import png, samples_of, write_parquet
from tests.unit.data.material import write_jsonl

APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(100)


@pytest.mark.parametrize(
    "path",
    ["._a.png", ".DS_Store", "d/._a.txt", ".git/a.png", "__MACOSX/a.png", "d/__MACOSX/e/a.png", "d/Thumbs.db",
     "desktop.ini", "Desktop.ini", "./._a.png"],
)  # fmt: skip
def test_hidden(path):
    assert is_hidden(path)


@pytest.mark.parametrize("path", ["a.png", "./a.png", "../a.png", "d.e/a", "_a.png", "macosx/a.png", "thumbs.db.png"])
def test_not_hidden(path):
    assert not is_hidden(path)


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    """A hidden folder, and a function that returns its address with the files of today."""
    folder = tmp_path / ".data" / "__MACOSX"
    folder.mkdir(parents=True)
    system = fsspec.filesystem("memory")
    system.store.clear()

    def address():
        if request.param == "local":
            return str(folder)
        for file in (path for path in folder.rglob("*") if path.is_file()):
            target = f"/.data/__MACOSX/{file.relative_to(folder)}"
            if not system.exists(target) or system.cat(target) != file.read_bytes():
                system.pipe(target, file.read_bytes())
        return "memory://.data/__MACOSX"

    yield folder, address
    system.store.clear()


def add_hidden(folder, *names):
    """The files that macOS writes next to each of `names`, and those that it and Windows write once."""
    (folder / "__MACOSX").mkdir(exist_ok=True)
    for name in names:
        (folder / f"._{name}").write_bytes(APPLE_DOUBLE)
        (folder / "__MACOSX" / name).write_bytes(APPLE_DOUBLE)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(APPLE_DOUBLE)


def test_captions(place):
    folder, address = place
    for colour in ("red", "blue"):
        (folder / f"{colour}.png").write_bytes(png(colour))
        (folder / f"{colour}.txt").write_text(colour)
        add_hidden(folder, f"{colour}.png", f"{colour}.txt")
    assert [sample.turns[1].text for sample in samples_of("captions", address())] == ["blue", "red"]


def test_frames(place):
    folder, address = place
    for number in range(3):
        (folder / f"{number}.png").write_bytes(png("red"))
        add_hidden(folder, f"{number}.png")
    path = address()
    film = FilePart(path) if remote.is_remote(path) else path
    assert len(list_frames(film)) == 3
    assert probe_video(film).num_frames == 3


@pytest.mark.parametrize("pattern", ["*.jsonl", "**/*.jsonl", "?[.ab]*.jsonl", "d/*.jsonl"])
def test_patterns(place, pattern):
    folder, address = place
    (folder / "d").mkdir()
    for name in ("aa.jsonl", "d/ab.jsonl"):
        write_jsonl(folder / name, [{}])
        add_hidden((folder / name).parent, (folder / name).name)
    expected = {"*.jsonl": {"aa.jsonl"}, "?[.ab]*.jsonl": {"aa.jsonl"}, "d/*.jsonl": {"d/ab.jsonl"}}
    root = address()
    found = files_of_entry(root, pattern)
    assert set(found) == expected.get(pattern, {"aa.jsonl", "d/ab.jsonl"})
    assert [remote.join(root, name) for name in found] == files_of_entry("", remote.join(root, pattern))


def test_a_hidden_folder_that_the_pattern_names(place):
    folder, address = place
    (folder / ".d").mkdir()
    write_jsonl(folder / ".d" / "a.jsonl", [{}])
    assert files_of_entry(address(), ".d/*.jsonl") == [".d/a.jsonl"]


def test_folders_of_tables(place):
    folder, address = place
    write_parquet(folder / "data" / "train-0.parquet", [{"caption": "a"}])
    add_hidden(folder / "data", "train-0.parquet")
    assert files_of_entry("", address()) == [f"{address()}/data/train-0.parquet"]


def test_the_state_of_a_folder_is_that_of_its_data(place):
    folder, address = place
    (folder / "a.txt").write_text("a")
    before = remote.state(address())
    add_hidden(folder, "a.txt")
    assert remote.state(address()) == before
    (folder / "a.txt").write_text("changed")
    assert remote.state(address()) != before
