"""`longvita data convert`: what is written is read as what was there."""

from __future__ import annotations

import json
import os

import pytest
import yaml
from typer.testing import CliRunner

from longvita.cli import app
from longvita.commands.data import convert as convert_command
from longvita.data.errors import DataError
from longvita.data.formats import read_samples
from longvita.data.formats.record import NO_OPTIONS
from longvita.data.media.media_file import is_folder, read_bytes, resolve
from longvita.data.quarantine import read_quarantine
from longvita.data.sample import Sample
from tests.unit.data.format_material import dump_json, llava, photograph, png, write_parquet, write_tar
from tests.unit.data.material import conversation, write_jsonl


def convert(*arguments):
    return CliRunner().invoke(app, ["data", "convert", *map(str, arguments)])


def write_config(path, sources):
    data = {"dataset": sources, "data_root": str(path.parent), "media_root": str(path.parent / "media")}
    path.write_text(yaml.safe_dump({"data": data}))


def contents(path, media_root):
    """Turns, and bytes of pictures and videos, of each sample of a data file; of a folder of frames its path."""
    found = []
    for _, sample in read_samples(str(path), None, NO_OPTIONS):
        assert isinstance(sample, Sample), sample
        sources = [resolve(medium, media_root) for medium in (*sample.images, *sample.videos)]
        media = [str(source) if is_folder(source) else read_bytes(source) for source in sources]
        found.append((sample.turns, len(sample.images), media))
    return found


def make_lines(folder):
    return write_jsonl(
        folder / "a.jsonl",
        [
            conversation("hello"),
            conversation("<image>then<image>?", images=["wide.jpg", "one.png"]),
            conversation("<video><image>?", images=["one.png"], videos=["clip.mp4"]),
            conversation("<video>?", "雪", videos=["frames"]),
        ],
    )


def make_array(folder):
    unlearned = {"messages": [{"role": "user", "content": "1?"}, {"role": "bot", "content": "one", "weight": 0}]}
    unlearned["messages"] += conversation("2?", "two")["messages"]
    return dump_json(folder / "b.json", [llava("<image>?", image="wide.jpg"), llava("hello"), unlearned])


def make_table(folder):
    rows = [{"caption": f"number {n}", "image": {"bytes": photograph(kind), "path": None}} for n, kind in
            enumerate(("jpeg", "png", "webp", "gif", "bmp"))]  # fmt: skip
    return write_parquet(folder / "c.parquet", rows)


def make_archive(folder):
    clip = (folder / "media" / "clip.mp4").read_bytes()
    members = [
        ("1.png", png("red")),
        ("1.txt", "red"),
        ("2.mp4", clip),
        ("2.txt", "a film"),
        ("3.json", json.dumps({"question": "?", "answer": "nothing"})),
    ]
    return write_tar(folder / "d.tar", members)


MAKERS = [make_lines, make_array, make_table, make_archive]


@pytest.mark.parametrize("make", MAKERS)
def test_to_webdataset(folder, make):
    path, media = make(folder), folder / "media"
    result = convert(path, "--to", "webdataset", "--output", folder / "out", "--media-root", media)
    assert result.exit_code == 0, result.output
    assert sorted(file.name for file in (folder / "out").iterdir()) == [f"{path.stem}-000000.tar"]
    assert contents(folder / "out" / f"{path.stem}-000000.tar", media) == contents(path, media)


@pytest.mark.parametrize("make", MAKERS)
def test_to_jsonl(folder, make):
    path, media = make(folder), folder / "media"
    result = convert(path, "--to", "jsonl", "--output", folder / "out", "--media-root", media)
    assert result.exit_code == 0, result.output
    had_files = make in (make_lines, make_array)
    root = media if had_files else folder / "out"
    assert f"their media_root is {root}" in result.stderr
    assert contents(folder / "out" / f"{path.stem}.jsonl", root) == contents(path, media)
    assert (folder / "out" / "media").exists() != had_files


def test_there_and_back(folder):
    path, media = make_lines(folder), folder / "media"
    convert(path, "--to", "webdataset", "--output", folder / "one", "--media-root", media)
    result = convert(folder / "one" / "a-000000.tar", "--to", "jsonl", "--output", folder / "two")
    # The folder of frames stays a path, so the written media have to be below its root.
    assert isinstance(result.exception, DataError)
    assert "give an --output below the media root" in str(result.exception)
    assert list(folder.glob("two*")) == []
    other = folder / "root"
    other.mkdir()
    (other / "frames").symlink_to(media / "frames")
    arguments = ["--to", "jsonl", "--output", other / "two", "--media-root", other]
    assert convert(folder / "one" / "a-000000.tar", *arguments).exit_code == 0
    back, before = contents(other / "two" / "a-000000.jsonl", other), contents(path, media)
    assert back[:3] == before[:3]
    assert back[3][2] == [str(other / "frames")]


def test_shards(folder):
    rows = [conversation(f"<image>number {number}", images=["one.png"]) for number in range(10)]
    path, media = write_jsonl(folder / "a.jsonl", rows), folder / "media"
    convert(path, "--to", "webdataset", "--output", folder / "out", "--media-root", media, "--shard-bytes", 20_000)
    shards = sorted((folder / "out").glob("*.tar"))
    assert [shard.name for shard in shards] == [f"a-{number:06}.tar" for number in range(len(shards))]
    assert 3 <= len(shards) < 10
    joined = [sample for shard in shards for sample in contents(shard, media)]
    assert joined == contents(path, media)


def test_captions_that_are_files_below_the_media_root_stay(folder):
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(png("red"))
    (folder / "pictures" / "a.txt").write_text("red")
    result = convert(folder / "pictures", "--to", "jsonl", "--output", folder / "out", "--media-root", folder)
    assert result.exit_code == 0
    (line,) = (folder / "out" / "pictures.jsonl").read_text().splitlines()
    assert json.loads(line)["images"] == ["pictures/a.png"]


def test_a_failure_leaves_no_draft(folder, monkeypatch):
    def fail(*_arguments):
        raise ZeroDivisionError

    write_jsonl(folder / "a.jsonl", [conversation("one")])
    monkeypatch.setattr(convert_command, "_write", fail)
    result = convert(folder / "a.jsonl", "--to", "jsonl", "--output", folder / "out")
    assert isinstance(result.exception, ZeroDivisionError)
    assert list(folder.glob("out*")) == []


def test_broken_samples_are_listed(folder, own_media):
    samples = [
        "{oops",
        conversation("<image>", images=["none.png"]),
        conversation("ok"),
        conversation("<image>", images=["../a.jsonl"]),
        conversation(""),
        conversation("<video>", videos=["pipe.mp4"]),
    ]
    os.mkfifo(own_media() / "pipe.mp4")
    path = write_jsonl(folder / "a.jsonl", samples)
    result = convert(path, "--to", "webdataset", "--output", folder / "out", "--media-root", folder / "media")
    assert result.exit_code == 1
    entries = read_quarantine(folder / "out" / "quarantine.jsonl")
    assert [(entry.line, str(entry.reason)) for entry in entries] == [
        (1, "invalid_json"),
        (2, "missing_file"),
        (4, "outside_media_root"),
        (5, "empty_turn"),
        (6, "broken_video"),
    ]
    assert "5 samples quarantined (invalid_json 1, missing_file 1, outside_media_root 1, empty_turn 1" in result.stderr
    assert len(contents(folder / "out" / "a-000000.tar", folder)) == 1


def test_missing_files_of_a_mix(folder):
    write_jsonl(folder / "a.jsonl", [conversation("one")])
    sources = {"lines": {"data_paths": ["a.jsonl", "none.jsonl"]}, "more": {"data_paths": ["nothing.jsonl"]}}
    write_config(folder / "config.yaml", sources)
    result = convert(folder / "config.yaml", "--to", "jsonl", "--output", folder / "out")
    assert isinstance(result.exception, DataError)
    assert "none.jsonl" in str(result.exception) and "nothing.jsonl" in str(result.exception)
    with open(folder / "config.yaml", "a") as file:
        file.write("  allow_missing: true\n")
    result = convert(folder / "config.yaml", "--to", "jsonl", "--output", folder / "out")
    assert result.exit_code == 0, result.exception
    assert "data.allow_missing leaves them out: 2 data files of 2 sources are missing" in result.stderr
    assert len(contents(folder / "out" / "lines.jsonl", folder / "out")) == 1


def test_a_mix(folder):
    make_lines(folder)
    write_parquet(folder / "t.parquet", [{"scan": png("red"), "label": 3}])
    sources = {
        "lines/of text": {"data_paths": ["a.jsonl"]},
        "table": {"data_paths": ["*.parquet"], "columns": {"images": "scan", "caption": "label"}},
        "left out": {"data_paths": ["none.jsonl"], "ratio": 0.0},
    }
    write_config(folder / "config.yaml", sources)
    assert convert(folder / "config.yaml", "--to", "jsonl", "--output", folder / "out").exit_code == 0
    assert sorted(file.name for file in (folder / "out").glob("*.jsonl")) == ["lines_of_text.jsonl", "table.jsonl"]
    (sample,) = contents(folder / "out" / "table.jsonl", folder / "out")
    assert (sample[0][1].text, sample[2]) == ("3", [png("red")])


def test_one_source_of_a_mix(folder):
    write_jsonl(folder / "a.jsonl", [conversation("one")])
    write_config(folder / "config.yaml", {name: {"data_paths": [f"{name}.jsonl"]} for name in ("a", "b", "gone")})
    arguments = ["--to", "jsonl", "--output", folder / "out"]
    (folder / "moved").mkdir()
    write_jsonl(folder / "moved" / "b.jsonl", [conversation("two")])
    result = convert(folder / "config.yaml", f"data.data_root={folder / 'moved'}", "--source", "b", *arguments)
    assert result.exit_code == 0, result.exception
    assert [path.name for path in (folder / "out").iterdir()] == ["b.jsonl"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["c.yaml", "--to", "jsonl", "--output", "new", "--source", "b"], "no such source; it has a"),
        (["a.jsonl", "--to", "jsonl", "--output", "new", "--source", "a"], "a.jsonl is a data file"),
        (["a.jsonl", "seed=1", "--to", "jsonl", "--output", "new"], "a.jsonl is a data file"),
        (["none.jsonl", "--to", "jsonl", "--output", "new"], "none.jsonl does not exist"),
        (["a.jsonl", "--to", "xml", "--output", "new"], "--to 'xml' is none of jsonl, webdataset"),
        (["a.jsonl", "--to", "jsonl", "--output", "there"], "there exists; remove it or give another folder"),
        (["a.jsonl", "--to", "jsonl", "--output", "half"], "half.partial exists; remove it"),
        (["a.jsonl", "--to", "jsonl", "--output", "memory://x"], "give a folder of this machine"),
        (["a.jsonl", "--to", "jsonl", "--output", "new", "--column", "colour=red"], "is not WHAT=NAME"),
        (["c.yaml", "--to", "jsonl", "--output", "new", "--prompt", "What?"], "are for a data file"),
        (["d.yaml", "--to", "jsonl", "--output", "new"], "two sources would both become a_b"),
    ],
)
def test_what_is_refused(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    write_jsonl(folder / "a.jsonl", [conversation("hello")])
    for name, sources in (("c", ["a"]), ("d", ["a/b", "a_b"])):
        write_config(folder / f"{name}.yaml", {source: {"data_paths": ["a.jsonl"]} for source in sources})
    (folder / "there").mkdir()
    (folder / "half.partial").mkdir()
    result = convert(*arguments)
    assert isinstance(result.exception, DataError)
    assert message in str(result.exception)
    assert not (folder / "new").exists()
